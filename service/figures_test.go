package service

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// figures are what one place shows: by the name of the figure, and that of the sink or lane.
type figures map[string]any

// One Status, shown in all places: the methods of the service, /status, outbox-cdc status, the metrics and outbox_processors. Each figure is
// the same wherever it is shown.
func TestAllPlacesShowTheSameFigures(t *testing.T) {
	t.Parallel()
	at := time.Now().UTC().Truncate(time.Microsecond)
	st := monitoring.Status{
		At: at, Source: monitoring.SourceStatus{Name: "shop", Slot: "shop", Database: monitoring.DatabaseTarget{Name: "db"}}, Role: monitoring.RoleLeader, Streaming: true,
		Since: at.Add(-time.Hour), Sessions: 3, Epoch: 17, LanesPerSink: 2, InFlight: 41, Lag: 1500 * time.Millisecond, LagBytes: 4242, Confirmed: 100, Invalid: 5, Unrouted: 6,
		Sinks: []monitoring.SinkStatus{
			{
				Name: "a", Type: "in_process", InSession: true, Breaker: "closed", CountedAt: at.Add(-time.Second), Parked: 11, DeadLetters: 12, OldestParked: 13 * time.Second,
				Counts: monitoring.Counts{Delivered: 1001, Failed: 102, Dead: 103, Discarded: 104, Unparked: 105},
				Lanes:  []monitoring.LaneStatus{{CatchingUp: true, Held: 7, InFlight: 8}, {Held: 9, InFlight: 10, RefusedAll: true, DeliveredAt: at}},
				Events: monitoring.EventTimes{DeliveredAt: at.Add(-2 * time.Second), OldestCommittedAt: at.Add(-14 * time.Second)},
			},
			{
				Name: "b", Type: "in_process", InSession: true, Breaker: "open", BreakerSince: at.Add(-time.Minute), Cause: "dial: refused", CountedAt: at, Parked: 21, DeadLetters: 22,
				OldestParked: 23 * time.Second, Counts: monitoring.Counts{Delivered: 2001, Failed: 202, Dead: 203, Discarded: 204}, Lanes: make([]monitoring.LaneStatus, 2),
				Events: monitoring.EventTimes{DeliveredAt: at.Add(-3 * time.Second), OldestCommittedAt: at.Add(-24 * time.Second)},
			},
		},
	}
	health := &monitoring.Health{}
	health.Set("session", monitoring.OK("streaming"))
	for i := range st.Sinks { // it has heard of it a moment earlier
		health.Set("sink:"+st.Sinks[i].Name, monitoring.OK("an earlier number"))
	}
	s := &OutboxService{cfg: config.Config{Name: "shop"}, options: BuildOptions{Health: health}}
	s.cfg.Delivery.Lanes = 2
	s.Outbox, s.WorkerManager = &Outbox{s}, &WorkerManager{s}
	s.tally.follow(countedBy(st))
	recent := monitoring.NewRecent(s.status, health)
	reg := prometheus.NewRegistry()
	reg.MustRegister(monitoring.NewCollector("", s.status))

	places := map[string]figures{
		"GetProcessorStatus": ofProcessors(s.Outbox.GetProcessorStatus()), "GetWorkerStats": ofWorkers(s.WorkerManager.GetWorkerStats()),
		"GetStats": ofStats(s.Outbox.GetStats()), "/status": ofInstance(recent.Instance()), "status": ofScreen(t, monitoring.Handler(reg, health, recent)),
		"the metrics": ofMetrics(t, reg), "outbox_processors": ofRows(&st),
	}
	shown := map[string][]string{} // where each figure is shown
	for _, place := range slices.Sorted(maps.Keys(places)) {
		for figure, value := range places[place] {
			for _, other := range shown[figure] {
				if want := places[other][figure]; want != value {
					t.Errorf("%s: %v in %s, %v in %s", figure, value, place, want, other)
				}
			}
			shown[figure] = append(shown[figure], place)
		}
	}
	for figure, where := range shown {
		if len(where) < 2 {
			t.Errorf("%s is shown by %s only: nothing was compared", figure, where)
		}
	}
	t.Logf("%d figures", len(shown))
	for i := range st.Sinks {
		want := st.Sinks[i].Component()
		for place, got := range map[string]monitoring.Component{
			"GetStatus": s.GetStatus().Components["sink:"+st.Sinks[i].Name], "/status": recent.Instance().Health.Components["sink:"+st.Sinks[i].Name],
		} {
			if got.Status != want.Status || got.Detail != want.Detail {
				t.Errorf("%s says of %s %+v, want %+v", place, st.Sinks[i].Name, got, want)
			}
		}
	}
	if got := s.GetStatus(); got.Status != monitoring.LevelDegraded || !got.Ready {
		t.Errorf("GetStatus: %+v", got)
	}
}

func micros(t time.Time) int64 { return t.UnixMicro() }

func ofProcessors(all []ProcessorStatus) figures {
	f := figures{}
	for _, p := range all {
		f["state "+p.Name], f["breaker "+p.Name] = string(p.State), p.CircuitBreaker
		f["parked "+p.Name], f["dead letters "+p.Name], f["oldest parked "+p.Name] = int64(p.Parked), int64(p.DeadLetters), p.OldestParked.Seconds()
		f["in flight "+p.Name], f["delivered at "+p.Name], f["oldest undelivered "+p.Name] = int64(p.InFlight), micros(p.LastProcessedAt), micros(p.OldestUndelivered)
		f["detail "+p.Name] = p.Detail
	}
	return f
}

func ofWorkers(all []WorkerStats) figures {
	f := figures{}
	for _, w := range all {
		n := w.Processor
		f["lanes "+n], f["working "+n], f["catching up "+n], f["held "+n] = int64(w.Workers), int64(w.Healthy), int64(w.CatchingUp), int64(w.HeldAggregates)
		f["delivered "+n], f["failed "+n], f["dead "+n], f["discarded "+n] = int64(w.Delivered), int64(w.Failed), int64(w.Dead), int64(w.Discarded)
		var inFlight int64
		for i, l := range w.Lanes {
			f[fmt.Sprintf("works %s %d", n, i)] = l.Healthy
			inFlight += int64(l.InFlight)
		}
		f["in flight "+n] = inFlight
	}
	return f
}

func ofStats(s OutboxStats) figures {
	return figures{
		"pending": int64(s.InFlight), "lag bytes": int64(s.SlotLagBytes), "lag": s.SlotLag.Seconds(), "all parked": int64(s.Parked), "all dead letters": int64(s.DeadLetters),
		"all delivered": int64(s.Delivered), "all failed": int64(s.Failed), "all dead": int64(s.Dead), "all discarded": int64(s.Discarded),
	}
}

func ofInstance(in monitoring.Instance) figures {
	f := figures{
		"epoch": int64(in.Epoch), "sessions": in.Sessions, "pending": int64(in.Stream.InFlight), "lag bytes": in.Stream.LagBytes, "lag": in.Stream.LagSeconds,
		"unrouted": in.Stream.Unrouted, "invalid": in.Stream.Invalid, "since": micros(in.Since),
	}
	var parked, dead int64
	for i := range in.Sinks {
		s := &in.Sinks[i]
		n := s.Name
		f["state "+n], f["detail "+n], f["condition "+n] = string(s.State), s.Detail, string(s.Condition)
		f["parked "+n], f["dead letters "+n], f["oldest parked "+n] = s.Rows.Parked, s.Rows.DeadLetters, s.Rows.OldestSeconds
		f["lanes "+n], f["working "+n], f["catching up "+n], f["held "+n] = int64(s.Lanes), int64(s.Working), int64(s.CatchingUp), int64(s.Held)
		f["in flight "+n], f["delivered at "+n], f["oldest undelivered "+n] = int64(s.InFlight), micros(s.DeliveredAt), micros(s.OldestUndeliveredAt)
		ofCounts(f, n, s.Counts)
		parked, dead = parked+s.Rows.Parked, dead+s.Rows.DeadLetters
	}
	f["all parked"], f["all dead letters"] = parked, dead
	return f
}

func ofCounts(f figures, sink string, c monitoring.CountReport) {
	f["delivered "+sink], f["failed "+sink], f["dead "+sink], f["discarded "+sink], f["unparked "+sink] = c.Delivered, c.Failed, c.Dead, c.Discarded, c.Unparked
}

// ofScreen is what outbox-cdc status -o json says while the database is down, so that all comes from the instance.
func ofScreen(t *testing.T, instance http.Handler) figures {
	t.Helper()
	server := httptest.NewServer(instance)
	t.Cleanup(server.Close)
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down.Close()
	cfg := admin.StatusConfig{Listen: strings.TrimPrefix(server.URL, "http://")}
	cfg.Name, cfg.DSN, cfg.Source.Slot = "shop", fmt.Sprintf("postgres://nobody@%s/db", down.Addr()), "shop"
	st, err := admin.ReadStatus(t.Context(), cfg)
	if err == nil || st.Slot == nil || len(st.Sinks) != 2 {
		t.Fatalf("status: %v %+v", err, st)
	}
	f := figures{"lag bytes": *st.Slot.LagBytes, "lag": *st.Slot.LagSeconds}
	for i := range st.Sinks {
		s := &st.Sinks[i]
		n := s.Name
		f["state "+n], f["detail "+n], f["condition "+n] = string(s.State), s.Detail, string(s.Condition)
		f["parked "+n], f["dead letters "+n], f["oldest parked "+n] = *s.Rows.Parked, *s.Rows.Dead, *s.Rows.OldestSeconds
		f["lanes "+n], f["working "+n], f["catching up "+n], f["held "+n] = int64(s.Lanes.Running), int64(s.Lanes.Working), int64(s.Lanes.CatchingUp), int64(s.Lanes.Held)
		f["in flight "+n] = int64(s.Lanes.InFlight)
	}
	return f
}

// ofMetrics has the metrics with the labels that they have, under the names of the figures.
func ofMetrics(t *testing.T, reg *prometheus.Registry) figures {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			key := family.GetName()
			for _, l := range slices.SortedFunc(slices.Values(m.Label), func(a, b *dto.LabelPair) int { return -strings.Compare(a.GetName(), b.GetName()) }) {
				key += " " + l.GetValue()
			}
			values[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	whole := func(key string) int64 {
		v, there := values[key]
		if !there {
			t.Errorf("there is no metric %s", key)
		}
		return int64(v)
	}
	at := func(key string) int64 { return int64(values[key]*1e6 + 0.5) }
	f := figures{
		"epoch": whole("epoch"), "sessions": whole("sessions_total"), "pending": whole("events_in_queue pending"), "lag bytes": whole("slot_lag_bytes"), "lag": values["slot_lag_seconds"],
		"unrouted": whole("events_processed_total discarded none"), "invalid": whole("events_processed_total dead none"), "since": at("session_start_timestamp_seconds"),
		"all parked": whole("events_in_queue parked"), "all dead letters": whole("events_in_queue dead"),
		"all discarded": whole("discarded_total no_route") + whole("discarded_total tried_once"),
	}
	for _, status := range []string{"delivered", "failed", "dead"} {
		var sum int64
		for key, v := range values {
			if strings.HasPrefix(key, "events_processed_total "+status+" ") {
				sum += int64(v)
			}
		}
		f["all "+status] = sum
	}
	for _, n := range []string{"a", "b"} {
		for figure, name := range map[string]string{
			"parked ": "parked_events", "dead letters ": "dead_letters", "catching up ": "lanes_catching_up", "held ": "held_aggregates", "in flight ": "in_flight",
			"delivered ": "events_processed_total delivered", "failed ": "events_processed_total failed", "dead ": "events_processed_total dead",
			"discarded ": "events_processed_total discarded",
		} {
			f[figure+n] = whole(name + " " + n)
		}
		f["oldest parked "+n], f["oldest undelivered "+n] = values["oldest_parked_age_seconds "+n], at("oldest_undelivered_timestamp_seconds "+n)
		f["breaker "+n] = map[int64]string{0: "closed", 1: "half-open", 2: "open"}[whole("circuit_breaker_state "+n)]
		for _, state := range monitoring.States() {
			if values["sink_state "+string(state)+" "+n] == 1 {
				f["state "+n] = string(state)
			}
		}
		var working int64
		for lane := range 2 {
			works := whole(fmt.Sprintf("worker_health %s %d", n, lane))
			working += works
			f[fmt.Sprintf("works %s %d", n, lane)] = works == 1
		}
		f["working "+n] = working
	}
	return f
}

// ofRows is what the heartbeat writes into outbox_processors.
func ofRows(st *monitoring.Status) figures {
	f := figures{"epoch": int64(st.Epoch)}
	for i := range st.Sinks {
		s := &st.Sinks[i]
		m := monitoring.NewProcessorMetrics(st, s)
		f["parked "+s.Name], f["dead letters "+s.Name], f["lanes "+s.Name], f["held "+s.Name] = *m.Parked, *m.DeadLetters, int64(m.Lanes), int64(m.Held)
		ofCounts(f, s.Name, m.CountReport)
	}
	return f
}
