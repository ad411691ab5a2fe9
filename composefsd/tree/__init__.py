"""A filesystem in memory, as columns: OCI layers, their merge, and the text form."""
