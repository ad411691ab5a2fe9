"""Where an OCI image comes from: one module for each transport."""
