// Package connector is the pipeline between the replication stream and the sinks. Run makes one session after the
// other; a session ends with its first error, and the next one starts from the slot. No part repairs itself.
//
//	reader ──chan []*delivery──▶ lanes ──chan Outcomes──▶ recorder
//	  ▲                          Deliver                    │ one transaction: log, dead letters, checkpoint
//	  └───────── standby status ◀── Tracker.Confirmed() ◀───┘
//
// Goroutines of a session. session.run starts those that work and waits for them; the two below the line only wait for
// others, so that the standby status goes on meanwhile:
//
//	goroutine         ends when                                  owns
//	reader (1)        ctx ends, or the stream does               replication connection, decoder, send side of the lanes' channels
//	lane (N a sink)   its channel is closed and nothing is on    the order of its aggregates, its queue
//	                  the wire, or work ends
//	Deliver (≤ 1 a    the sink answers, or its deadline passes   the batch it was given, until it returns
//	lane)
//	recorder (1)      its channel is closed and empty, or work   the ledger's connection, the settled side of the tracker
//	                  ends
//	keeper (1)        work ends                                  partitions, drift check, heartbeat, lag
//	---
//	takeOver (1)      the recorder is open, or ctx ends          nothing: it waits for the ledger's lock
//	drain (1)         lanes and recorder have ended              nothing: it waits for them beside the standby status
//
// The only sender closes: session.run, in whose goroutine the reader runs, closes the lanes' channels once it has returned;
// session.drain the recorder's, after all lanes, its other senders, have returned as well.
//
// Three contexts exist. The caller's ends the reading. deliver ends Deliver calls: when the drain takes too long, or at
// once when the replication connection is lost. work ends everything, after the outcomes of those calls were recorded.
package connector
