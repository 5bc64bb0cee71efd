//! Integration tests: one binary, one link step, shared helpers. Cases that need RabbitMQ are ignored by default and
//! read its address from `TEST_RABBITMQ_URL`; `tests/run` provides one and runs them all.
