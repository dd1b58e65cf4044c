//! A prefix cache as a radix tree over pages, for inference engines.
