//! The OpenAPI v3 documents, one a group version, from the schema table and the kinds.
