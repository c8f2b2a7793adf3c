package connector

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/tracing"
)

// build makes everything that run starts. Nothing runs yet. ids has the processor ids by sink name.
func (s *session) build(ctx context.Context, start ledger.Start, facts provision.Facts, ids map[string]int32) error {
	c, d := s.c, &s.c.cfg.Delivery
	policy := ledger.ParkedPolicy{Longest: d.Retry.Max, DeadBlocks: d.DeadBlocks}
	if err := c.db.reviseParked(ctx, slices.Collect(maps.Values(ids)), policy); err != nil {
		return err
	}
	s.tracker = checkpoint.NewTracker(d.MaxInFlight, d.MaxInFlightBytes, start.Prefix, start.Confirmed)
	s.tracker.Written(s.written)
	c.tracker.Store(s.tracker)
	s.confirm.Tracker = s.tracker
	seenBefore := s.written
	if start.Clean {
		seenBefore = 0
	}
	routes := c.cfg.RouterRoutes(ids)
	if err := s.openSinks(ids, seenBefore, routes); err != nil {
		return err
	}
	if err := s.makeJobs(ctx, routes); err != nil {
		return err
	}
	s.reader = s.newReader(start, seenBefore, facts.Table.OID, routes)
	return s.readPaused(ctx, c.db)
}

// openSinks opens all sinks and makes their lanes. ids has the processor ids by sink name.
func (s *session) openSinks(ids map[string]int32, seenBefore pglogrepl.LSN, routes []router.Route) error {
	origin, err := s.c.origin()
	if err != nil {
		return err
	}
	// There is room for the outcomes of all the Deliver calls that lanes may have unrecorded, so that a lane waits for the recorder only
	// when it parks.
	s.outcomes = make(chan checkpoint.Outcomes, len(s.c.cfg.Sinks)*s.c.cfg.Delivery.Lanes*maxUnrecorded+64)
	s.bySink = map[int32][]*lane{}
	for _, sc := range s.c.cfg.Sinks {
		shared, err := s.openSink(sc, ids[sc.Name], origin)
		if err != nil {
			return err
		}
		own := router.Sink{Processor: shared.id, Topic: sc.Topic, Key: sc.Key}
		s.makeLanes(shared, func(parked parkedReader) rowSource {
			// Each lane has a router of its own, because a router is for one goroutine.
			return rowSource{parked: parked, address: addressOf(router.New(routes), own), seenBefore: seenBefore}
		})
	}
	return nil
}

// openSink opens a sink and makes what its lanes share.
func (s *session) openSink(sc Sink, id int32, origin string) (*sharedSink, error) {
	c := s.c
	sink, err := sc.Open()
	if err != nil {
		return nil, fmt.Errorf("open sink %q: %w", sc.Name, err)
	}
	s.sinks = append(s.sinks, sink)
	if check := c.newSinkCheck(sc, sink); check != nil {
		s.checks = append(s.checks, check)
	}
	lasting := c.sinks[sc.Name]
	lasting.state.begin(c.cfg.Delivery.Lanes)
	lasting.objective.begin(time.Now())
	shared := &sharedSink{
		sink: sink, name: sc.Name, id: id, origin: origin, policy: c.cfg.Delivery.policyFor(sc), delivery: c.cfg.Delivery,
		breaker: lasting.breaker, budget: lasting.budget, lease: s.lease, paused: &lasting.paused, state: lasting.state,
		measures: newLaneMeasures(c.cfg.Metrics, sc.Name), spans: tracing.ForSink(c.cfg.Tracer, sc.Traced), objective: lasting.objective, fast: s.stream.Fast, logger: c.cfg.Logger,
	}
	if sc.MaxRetries != nil {
		shared.delivery.MaxRetries = *sc.MaxRetries
	}
	return shared, nil
}

// makeLanes makes the lanes of a sink. rows returns where a lane gets its parked rows.
func (s *session) makeLanes(shared *sharedSink, rows func(parkedReader) rowSource) {
	n := shared.delivery.Lanes
	lanes := make([]*lane, n)
	for i := range lanes {
		lanes[i] = newLane(shared, i, rows(s.c.db.parkedRows(shared.id, i, n)), s.outcomes)
		lanes[i].rules.maxHeld = s.c.maxHeld
	}
	s.bySink[shared.id] = lanes
	s.lanes = append(s.lanes, lanes...)
	shared.breaker.attach(lanes)
	shared.budget.attach(lanes)
	shared.state.attach(lanes, s.tracker)
}

// newReader makes the reader of an outbox with this OID.
func (s *session) newReader(start ledger.Start, seenBefore pglogrepl.LSN, outbox uint32, routes []router.Route) *reader {
	c := s.c
	inputs := map[int32][]*laneInput{}
	for id, lanes := range s.bySink {
		for _, l := range lanes {
			inputs[id] = append(inputs[id], &laneInput{lane: l.in, processor: id, inFlight: &l.shown.inFlight})
		}
	}
	return &reader{
		stream: s.stream, tracker: s.tracker, start: start, seenBefore: seenBefore, lanes: inputs, outcomes: s.outcomes,
		eventOverhead: len(c.cfg.Sinks) * deliverySize,
		decoder:       decoder.New(decoder.Table{OID: outbox, Columns: c.cfg.Source.Columns}, c.cfg.Delivery.MaxEventBytes),
		router:        router.New(routes),
		clock:         c.newReaderClock(),
		logger:        c.cfg.Logger,
		checkDrift:    c.checkDriftForReader,
		foreignTables: map[uint32]struct{}{}, unroutedLog: &c.unroutedLog, oddMetadata: &c.oddMetadata, deaths: c.outages.noSink, noSink: &c.noSink,
	}
}

// recorderConfig returns the settings of a session's recorder. fast reports whether the stream is fast.
func (c *Connector) recorderConfig(fast func() bool) checkpoint.RecorderConfig {
	return checkpoint.RecorderConfig{
		Fast: fast, Logger: c.cfg.Logger,
		State: func(err error) {
			c.noteLogin(err)
			recorder := monitoring.OK("")
			if err != nil {
				recorder = monitoring.Failed(err.Error())
			}
			c.cfg.Health.Set("recorder", recorder)
		},
	}
}
