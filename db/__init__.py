"""The ground floor: tables, migrations, statements and domain rules. Imports no service."""
