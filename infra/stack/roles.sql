-- The roles of an installation, with passwords from the environment: one owns the schema and changes it
-- (METERHOUSE_MIGRATION_DATABASE_URL), the other is the application (METERHOUSE_DATABASE_URL) and gets its rights from
-- `meterhouse migrate`. Done again it sets the passwords. For psql, as a superuser, in the database postgres.
\set ON_ERROR_STOP on
\getenv owner_password METERHOUSE_OWNER_PASSWORD
\getenv password METERHOUSE_PASSWORD
SELECT 'CREATE ROLE meterhouse_owner' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'meterhouse_owner') \gexec
SELECT 'CREATE ROLE meterhouse' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'meterhouse') \gexec
ALTER ROLE meterhouse_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'owner_password';
ALTER ROLE meterhouse LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
SELECT 'CREATE DATABASE meterhouse OWNER meterhouse_owner TEMPLATE template0 ENCODING ''UTF8'''
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'meterhouse') \gexec
REVOKE ALL ON DATABASE meterhouse FROM PUBLIC;
GRANT CONNECT ON DATABASE meterhouse TO meterhouse;
