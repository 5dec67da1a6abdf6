"""The database: connections, the embedded PostgreSQL, leases, roles."""
