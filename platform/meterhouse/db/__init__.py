"""SQL: the tables, the engine, and one store class per part of the catalog and the ledger.

Everything that knows SQLAlchemy is in this package. A store method is one transaction, takes and returns plain
frozen values, and raises ``StoreDown`` when the database cannot answer.
"""
