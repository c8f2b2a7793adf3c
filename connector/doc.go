// Package connector is the pipeline between the replication stream and the sinks. Connector.Run makes one session after the
// other. A session ends with its first error, and the next one starts where the slot stands. No part repairs itself.
//
//	reader ──chan handed──▶ lanes ──chan Outcomes──▶ recorder
//	  ▲                     Deliver, park,             │ one transaction: log, parked rows, checkpoint
//	  └── standby status ◀──┐ catch up ◀─ parked rows ─┘
//	                        └── Tracker.Confirmed() ◀──┘
//
// Where to look:
//
//   - connector.go: the configuration, and Run, which makes the sessions; errors.go: which errors end Run;
//   - session.go: how a session begins and ends; session_build.go: what it is made of; setup.go: what is checked and registered
//     before it; history.go: whether slot and checkpoint fit together, and what is compared if they do not;
//   - postgres.go: PostgreSQL, behind the interfaces that stand where they are used; routes.go: the configured routes in the form
//     that the router takes;
//   - resync.go: when a lost slot is made anew unattended;
//   - reader.go: the main loop; unrouted.go: the log's line about events that no route matches; odd_metadata.go: about metadata that
//     are no object;
//   - delivery.go: one event for one sink; retry.go: how long it waits for its next try; stored_event.go and error_text.go: what the
//     ledger has of it;
//   - lane.go: a lane; lane_mode.go: what it does next; lane_outcome.go: what becomes of its deliveries; lane_table.go: its rows of
//     outbox_parked; lane_record.go: what the recorder has of it;
//   - read_parked.go: the rows of outbox_parked as lanes see them; large.go and floor.go: which of them are read when;
//     lane_away.go: which of them are due as soon as the destination answers again;
//   - backlog.go: a job, which parks rows of the outbox that the stream does not carry; backlog_state.go: what it and the lanes tell each
//     other; backlog_postgres.go: what it reads; lane_asks.go: what others ask of a lane;
//   - breaker.go: when a sink is left alone; budget.go: how many of its messages may die;
//   - check.go: how a sink is looked at without a message; checkstate.go: what that has found;
//   - slow.go: when the reader no longer waits for a slow sink;
//   - lease.go: what keeps a process that was frozen, or is cut off from PostgreSQL, from sending beside its successor;
//   - unsent.go: which messages no session can have sent before;
//   - listen.go: how the lanes hear what people change; owed.go and counts.go: how many rows are parked and dead;
//   - keeper.go: the duties that are repeated at intervals; heartbeat.go: the one that writes numbers of each sink; measure.go: the one
//     that asks PostgreSQL for the metrics; cleanup.go: what deletes old rows;
//   - unaccounted.go: what compares the outbox with the ledger all the time; owing.go: which events are owed to which sinks;
//   - sink_results.go: how many events of a sink were accepted in time; results.go: what outbox_metrics has of that;
//   - successor.go: what a connector takes over from the one before it in the process, refused logins, other passwords;
//   - traced_ledger.go: the spans of the recorder's transactions; those of Deliver calls begin and end in
//     deliver_call.go;
//   - watch.go: which calls to PostgreSQL hang; stream_error.go: what the server's errors in the stream mean; stuck.go: where the
//     stream has ended again and again;
//   - status.go: Connector.Status, the one snapshot that metrics and embedding services show; sinkstate.go: how a sink does, for Status,
//     /readyz and the log; topics_away.go: which of its topics are away; refusals.go: whether it refuses everything;
//   - stages.go: where the time goes, and which stage is the bottleneck;
//   - outage.go: when the log has a line about a sink's outage, suspicion or topics; death_log.go: about its dead letters;
//     publish.go: what the ledger says of each sink.
//
// Goroutines of a session. session.run starts those above the line and waits for them. The two below the line only wait for
// others, so that the standby status goes on meanwhile:
//
//	goroutine         ends when                                  owns
//	reader (1)        ctx ends, or the stream does               replication connection, decoder, send side of the lanes' channels
//	lane (N a sink)   its channel is closed and no Deliver       the order of its aggregates, its queue
//	                  runs, or work ends
//	Deliver (1 a      its lane has ended, and the sink answers   the batch it was given, until it returns
//	lane)             or the deadline passes
//	read (≤ 1 a lane) the rows are there, or its lane ends       its snapshot of outbox_parked
//	backlog job (≤ 1  the job is done, or reading ends           the job's cursor
//	a sink)
//	recorder (1)      its channel is closed and empty, or work   the ledger's connection, the settled side of the tracker
//	                  ends
//	keeper (1, and 1  reading ends                               partitions, drift check, heartbeat, lag in bytes
//	a duty)
//	lease (1)         reading ends                               its connection; until when a Deliver may begin
//	listen (1)        reading ends                               its connection; who is paused
//	keepCounts (1)    reading ends                               when the parked rows are counted
//	keepOldest (1)    reading ends                               when the oldest parked rows are looked for
//	keepClean (1)     reading ends                               how far the outbox was cleaned up
//	keepAccounts (1)  reading ends                               how far the outbox was compared with the ledger
//	keepResults (1)   reading ends                               which results of minutes are not written yet
//	check (≤ 1 a      reading ends, and Check has returned       nothing
//	sink)
//	slow rule (≤ 1)   reading ends                               how often each sink made the reader wait
//	publisher (1)     reading ends                               which states of sinks the ledger has
//	staySeen (1)      it is connected, or work ends              nothing; begins when the keeper has ended
//	---
//	makeReady (1)     all is made, or ctx ends                   what it makes, until then
//	drain (1)         lanes and recorder have ended              nothing
//
// Two more live as long as Run. watch says which call to PostgreSQL hangs, and owns nothing. outageLog tells the log of the sinks, and
// owns what it has told. A breaker that is open has a timer, whose function makes it half-open; the end of Run stops it.
//
// A webhook sink has goroutines of its own, one for each connection, which end before its Deliver returns.
//
// Only the sender closes a channel. session.run, in whose goroutine the reader runs, closes the lanes' channels after the reader
// has returned. session.drain closes the recorder's channel after all lanes and jobs, its other senders, have returned as well. A lane
// closes the channel of its Deliver calls.
//
// Three contexts exist:
//
//   - the caller's context ends the reading;
//   - deliver ends the Deliver calls: when the drain takes too long, or at once when the replication connection is lost;
//   - work ends everything, after the outcomes of those calls were recorded.
//
// A sink's breaker, its death budget, its state, and whether a person has paused the sink, outlive sessions: they belong to the Connector.
package connector
