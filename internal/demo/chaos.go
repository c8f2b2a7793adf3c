package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The rhythm of the chaos: how long all is well, how long a sink is away, and how often it is looked what that does.
const (
	chaosCalm = 5 * time.Second
	chaosAway = 9 * time.Second
	chaosLook = 100 * time.Millisecond
)

// chaosConfiguration has the times of a demo: a person does not watch for minutes.
const chaosConfiguration = `delivery:
  retry: {initial: 500ms, max: 2s}
breaker: {max_failures: 3, reset_timeout: 2s}
`

// chaos breaks Redis and the receiver of webhooks in turn, and says in words what the connector makes of it, until ctx ends.
// Then all is mended.
func (d *demo) chaos(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, d.dsn())
	if err != nil {
		return endOf(ctx, fmt.Errorf("chaos: %w", err))
	}
	defer func() {
		_ = conn.Close(context.WithoutCancel(ctx)) // its server goes, too
	}()
	acts := []struct {
		sink, who    string
		away, mended func()
	}{
		{"stream", "Redis", func() { d.others.redis.SetError("LOADING chaos") }, func() { d.others.redis.SetError("") }},
		{"partner", "the receiver of webhooks", func() { d.others.away.Store(true) }, func() { d.others.away.Store(false) }},
	}
	w := watch{demo: d, conn: conn, sink: acts[0].sink}
	for n := 0; ; n++ {
		act := acts[n%len(acts)]
		if w.during(ctx, chaosCalm) != nil { // the one that is back still has to catch up
			return endOf(ctx, w.err)
		}
		w.sink = act.sink
		d.say("~~ chaos: %s goes away", act.who)
		act.away()
		err := w.during(ctx, chaosAway)
		act.mended()
		d.say("~~ chaos: %s is back", act.who)
		if err != nil {
			return endOf(ctx, w.err)
		}
	}
}

// endOf is err, unless it is of having been told to end.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// watch tells what changes at a sink.
type watch struct {
	*demo
	conn   *pgx.Conn
	sink   string
	state  string
	parked int // as last told
	most   int // since the sink was live
	err    error
}

// during watches for so long.
func (w *watch) during(ctx context.Context, d time.Duration) error {
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(chaosLook)
	defer tick.Stop()
	told := time.Now()
	for {
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		if w.err = w.look(ctx, &told); w.err != nil {
			return w.err
		}
	}
}

func (w *watch) look(ctx context.Context, told *time.Time) error {
	state, err := w.readState(ctx)
	if err != nil {
		return err
	}
	if state != w.state {
		if state != "" {
			w.demo.say("~~ %s", state)
		} else if w.state != "" {
			w.demo.say("~~ %s: the breaker is closed, it takes events again", w.sink)
		}
		w.state = state
	}
	var parked int
	err = w.conn.QueryRow(ctx, `select count(*) from outbox_parked k join outbox_processors p on p.id = k.processor_id
		where p.processor_name = $1 and k.status = 'parked'`, w.sink).Scan(&parked)
	if err != nil {
		return fmt.Errorf("chaos: %w", err)
	}
	w.most = max(w.most, parked)
	switch {
	case parked == 0 && w.parked > 0:
		w.demo.say("~~ %s: caught up, everything that was parked is delivered, up to %d events, in order; its lanes are live", w.sink, w.most)
		w.parked, w.most = 0, 0
	case parked != w.parked && (w.parked == 0 || time.Since(*told) > 2*time.Second):
		w.demo.say("~~ %s: parked: %d; Kafka and the slot go on", w.sink, parked)
		w.parked, *told = parked, time.Now()
	}
	return nil
}

// readState is what /readyz says of the sinks that are not ok, without what changes all the time.
func (w *watch) readState(ctx context.Context) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.http+"/readyz", nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", fmt.Errorf("chaos: %w", err)
	}
	defer response.Body.Close()
	var report struct {
		Components map[string]struct {
			Status string `json:"status"`
			Detail string `json:"detail"`
		} `json:"components"`
	}
	if err := json.NewDecoder(response.Body).Decode(&report); err != nil {
		return "", fmt.Errorf("chaos: read /readyz: %w", err)
	}
	var texts []string
	for name, c := range report.Components {
		if sink, is := strings.CutPrefix(name, "sink:"); is && c.Status != "ok" {
			detail, _, _ := strings.Cut(c.Detail, ";")
			texts = append(texts, sink+": "+detail)
		}
	}
	sort.Strings(texts)
	return strings.Join(texts, "; "), nil
}
