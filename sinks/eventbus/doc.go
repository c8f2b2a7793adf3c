// Package eventbus has the two event buses: Sink, which is NATS JetStream, for the daemon, and Bus, which is a bus within
// the process, for services that embed the connector. They share no code but the contract.
//
// # NATS JetStream
//
// A message is published to the subject that its topic names, with the event's id as Nats-Msg-Id and the attributes of
// CloudEvents as headers (message.go). It is accepted when a stream has acknowledged it; that a stream knows it already
// (it is within the stream's duplicate window) is an acknowledgement too. Streams are made by people: the sink makes
// none. How long an acknowledged message lives is the stream's and the server's matter; by default a server syncs files
// to the disk every two minutes, so with a single replica a power cut loses what is younger (sync_interval: always).
//
// Order. JetStream decides about each message alone: one may be refused, as too large or because no stream takes its
// subject, and the one that was published right behind it accepted. So at most one message of an aggregate is on the
// wire: the next is published when the acknowledgement of the one before it has come. Different aggregates do not wait
// for each other, so a batch in which every message is of another aggregate takes one round trip; n messages of one
// aggregate take n. Atomic batches of server 2.12 do not help: the stream must allow them, a batch that holds one
// message which the stream has already is refused as a whole (so every repetition would be), and there may be fifty of
// them in a stream at a time.
//
// A message that was on the wire when a deadline passed or the connection broke may be in the stream. It comes again
// with the same id, and before what follows it, so that it is in order or a duplicate.
//
//	Deliver (one a lane) ──queue──▶ run: publishes ──▶ nats.go ──▶ server
//	   ▲                                                             │
//	   └── answers, by the number in the reply subject ◀─────────────┘
//
// Deliver never calls the client, which takes its lock while it dials and while it writes: run does, alone, and owns
// what it writes. The client has no retries here. It buffers nothing while it is not connected, and Deliver fails at
// once then; it reconnects for ever. A server that answers no ping for fifteen seconds counts as lost. A stream that
// does not answer (it has no quorum) while its server does is not tried for five seconds after a time-out: what is
// remembered is the subject, as that is what a message names.
//
// # In-process bus
//
// See Bus.
//
// Files: sink.go what lanes share; connection.go the client and its goroutine; delivery.go one Deliver; message.go
// subjects and headers; verdict.go answers; bus.go and handlers.go the bus within the process.
package eventbus
