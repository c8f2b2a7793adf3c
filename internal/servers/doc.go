// Package servers starts real servers, PostgreSQL and Apache Kafka, for tests, benchmarks and the demo, and puts a
// TCP proxy in front of them to inject faults. It finds or downloads what it starts, runs it as a child that cannot
// outlive this process, listens on 127.0.0.1 only, and leaves nothing behind but the download cache.
//
// It knows nothing of this project: no migrations, no testing.T. Package pgtest is what tests use.
//
// With the build tag "containers" the same functions start the same servers in containers.
package servers
