// Package connector is the pipeline between the replication stream and the sinks. Run makes one session after the
// other; a session ends with its first error, and the next one starts from the slot. No part repairs itself.
//
//	reader ──chan []*delivery──▶ lanes ──chan Outcomes──▶ recorder
//	  ▲                          Deliver, park,             │ one transaction: log, parked rows, checkpoint
//	  └── standby status ◀──┐    catch up ◀── parked rows ──┘
//	                        └─────── Tracker.Confirmed() ◀─┘
//
// Where to look: read.go is the main loop; lane.go the lane, which is live (live.go) or catches up (catchup.go), and what
// becomes of its deliveries (finish.go); parked.go what it reads of outbox_parked; breaker.go when a sink is left alone;
// slow.go when a slow one is no longer waited for; listen.go what people change; keeper.go what is done now and then; watch.go
// what hangs in PostgreSQL; refusal.go what the server's errors in the stream mean.
//
// Goroutines of a session. session.run starts those that work and waits for them; the two below the line only wait for
// others, so that the standby status goes on meanwhile:
//
//	goroutine         ends when                                  owns
//	reader (1)        ctx ends, or the stream does               replication connection, decoder, send side of the lanes' channels
//	lane (N a sink)   its channel is closed and nothing is on    the order of its aggregates, its queue
//	                  the wire, or work ends
//	Deliver (1 a      its lane has ended, and the sink answers   the batch it was given, until it returns
//	lane)             or the deadline passes
//	read (≤ 1 a lane) the rows are there, or its lane ends       its snapshot of outbox_parked
//	recorder (1)      its channel is closed and empty, or work   the ledger's connection, the settled side of the tracker
//	                  ends
//	keeper (1, and 1  reading ends                               partitions, drift check, heartbeat, lag in bytes
//	a duty)
//	listen (1)        reading ends                               its connection; who is paused, how much is owed
//	slow rule (≤ 1)   reading ends                               how often each sink made the reader wait
//	---
//	makeReady (1)     all is made, or ctx ends                   what it makes, until then: it asks the ledger beside the status
//	drain (1)         lanes and recorder have ended              nothing: it waits for them beside the standby status
//
// One more, watch, lives as long as Run. It shows lag and what hangs, and owns nothing.
//
// A webhook sink has goroutines of its own, one a connection, which end before its Deliver does.
//
// The only sender closes: session.run, in whose goroutine the reader runs, closes the lanes' channels once it has returned;
// session.drain the recorder's, after all lanes, its other senders, have returned as well; a lane that of its Deliver calls.
//
// Three contexts exist. The caller's ends the reading. deliver ends Deliver calls: when the drain takes too long, or at
// once when the replication connection is lost. work ends everything, after the outcomes of those calls were recorded.
//
// A sink's breaker, and whether a person has paused it, outlive sessions: they belong to the Connector.
package connector
