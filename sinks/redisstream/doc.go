// Package redisstream is the sink for Redis and what speaks its protocol: each message is an entry of the stream that
// is named like its topic, with the columns as fields (entry.go). Redis 6.2 or newer; a single server, one behind
// Sentinel, or a cluster.
//
// go-redis makes the connections: dialing, TLS, authentication, Sentinel, the cluster's map. What is sent on them, and
// what the answers mean, is decided here, for these reasons:
//
//   - Order. After a message of an aggregate that was not accepted, no later one may be. So the entries of a stream go
//     out as one MULTI: what the server refuses while it queues them (no memory, read-only, no right) aborts them
//     all. All that a wave holds of an aggregate goes to one stream, and the rest waits for its outcome.
//   - Every reply counts. go-redis gives up at the first error of a transaction, and does not tell a MULTI that was
//     refused, after which the entries are added one by one and again with every try, from one that was aborted. Here
//     all replies are read as they are, and an empty MULTI shows first that the user may use it.
//   - Time. Deliver ends when its context does, and fails at once what has just timed out. A connection is closed under
//     what waits for it, as its deadline alone does not know of a cancellation.
//   - Cost. Commands are used again, and their arguments point into the messages (BenchmarkDeliver).
//
// A connection that breaks before the answer to EXEC leaves the outcome unknown: the messages come again, with the same
// ids. With MAXLEN or MINID the stream is trimmed as entries are added, approximately.
//
//	Deliver ── plan: which messages go into the next wave, one MULTI a stream
//	   ▲         │
//	   │         ▼
//	   │       send: one pipeline a node, all nodes at a time
//	   │         │
//	   └──── settle: accepted, failed (and what stands behind), or sent to another node of the cluster
//
// Files: sink.go what lanes share; delivery.go one Deliver; link.go a client and sending; entry.go fields; verdict.go
// replies.
package redisstream
