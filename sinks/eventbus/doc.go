// Package eventbus contains two event buses. Sink delivers to NATS JetStream; it is for the daemon. Bus is a bus within
// the process, for services that embed the connector. They have no code in common.
//
// # NATS JetStream
//
// A message is published to the subject that its topic names. Nats-Msg-Id is the id of the event, and the headers are
// the attributes of CloudEvents (message.go). The message is accepted when a stream has acknowledged it. If the stream
// has it already (within its duplicate window), that is an acknowledgement too. The sink makes no streams; people do.
// How long a stream keeps an acknowledged message depends on the stream and on the server. By default a server syncs
// files to the disk every two minutes, so with a single replica a power failure loses younger messages (unless
// sync_interval is always).
//
// Order. JetStream decides about each message by itself: it may refuse one, because it is too large or because no stream
// takes its subject, and accept the one that was published right after it. So at most one message of an aggregate is on
// the wire. The next one is published when the one before it was acknowledged. Messages of different aggregates do not
// wait for each other. So a batch whose messages all belong to different aggregates takes one round trip, and n messages
// of one aggregate take n. The atomic batches of server 2.12 do not help: the stream must allow them; a batch with one
// message that the stream has already is refused as a whole, and so every repetition would be; and a stream allows only
// fifty of them at a time.
//
// If the deadline passes or the connection breaks while a message is on the wire, the message may be in the stream. It
// comes again, with the same id, before the later ones of its aggregate. So it arrives in order, or is a duplicate.
//
//	Deliver (one a lane) ──queue──▶ run: publishes ──▶ nats.go ──▶ server
//	   ▲                                                             │
//	   └── answers, by the number in the reply subject ◀─────────────┘
//
// Deliver never calls the client, because the client holds its lock while it dials and while it writes. Only run calls
// it, and owns what it writes. The client does not repeat messages. While it is not connected it buffers nothing, and
// Deliver fails at once. It tries to reconnect for ever. A server that answers no ping for fifteen seconds counts as
// lost.
//
// Subjects that are away. If no stream takes a subject, the user has no right to it, or its stream is full, sealed, another
// one than the configured one, or has no quorum, that is ErrTopicUnavailable, and says nothing about other subjects (if all
// messages have one subject, it is ErrUnavailable). Each connection remembers such subjects, and not streams, because a
// message names only the subject.
//
// Whether only a subject is away or the destination as a whole is not always to be seen in the answer (away.go). The server
// answers alike whether one stream is missing or the account has no JetStream. A stream without a quorum, and a server that
// hangs, do not answer at all. So if no stream has answered any lane meanwhile, Deliver asks JetStream for the account
// ($JS.API.INFO). If JetStream answers, a message that has had no answer for four seconds is given up and its subject is away:
// it must not hold up others until the deadline. If JetStream does not answer, Deliver waits until the deadline, and the
// destination is away. If the user may not ask JetStream, a missing stream counts as a subject that is away, and silence as a
// destination that is, unless other lanes get answers.
//
// # In-process bus
//
// See Bus.
//
// Files: sink.go: what the lanes share. connection.go: the client and its goroutine. delivery.go: one call of Deliver.
// away.go: whether a subject is away or all. check.go: whether streams take the subjects, without a message. message.go: subjects and headers. verdict.go: what an answer means. bus.go and handlers.go: the bus within the process.
package eventbus
