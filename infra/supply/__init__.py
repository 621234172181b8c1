"""What this is made of (`infra/sbom`), and which of it has known vulnerabilities (`infra/audit`)."""
