// Package servers starts real servers for tests, benchmarks and the demo: PostgreSQL, PgBouncer, Apache Kafka, Redis (alone, as a
// cluster, with a Sentinel), NATS with JetStream and Prometheus; and puts a TCP proxy in front of them to inject faults. It finds,
// downloads or builds what it starts, runs it as a child that cannot outlive this process, listens on 127.0.0.1 only, and
// leaves nothing behind but the download cache.
//
// It knows nothing of this project: no migrations, no testing.T. Package pgtest is what tests use.
//
// With the build tag "containers" PostgreSQL and Kafka are started in containers, by the same functions.
package servers
