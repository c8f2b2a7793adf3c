package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// askPatience is how long an instance may take to answer.
	askPatience = time.Second
	// mostAnswer is how long its answer may be. A sink takes less than 2 kB.
	mostAnswer = 4 << 20
	// mostAsked is how many addresses are asked at most.
	mostAsked = 32
)

// answer is what was heard from an address.
type answer struct {
	address  string
	instance *monitoring.Instance // nil if err is not
	err      error
}

// askAll asks all addresses at once. They may be those of other programs, so nothing in an answer is taken for granted.
func (c *StatusConfig) askAll(ctx context.Context, addresses []string) []answer {
	ctx, stop := context.WithTimeoutCause(ctx, askPatience, fmt.Errorf("no answer for %s", askPatience))
	defer stop()
	transport := &http.Transport{DisableKeepAlives: true} // it uses no proxy: instances are asked directly
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	answers := make([]answer, min(len(addresses), mostAsked))
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() {
			answers[i].address = addresses[i]
			answers[i].instance, answers[i].err = c.ask(ctx, client, addresses[i])
		})
	}
	all.Wait()
	return answers
}

// ask asks the instance at an address, host:port.
func (c *StatusConfig) ask(ctx context.Context, client *http.Client, address string) (*monitoring.Instance, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/status", http.NoBody)
	if err != nil {
		return nil, errors.New("this is no address")
	}
	response, err := client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err // without the URL, which the screen has
		}
		return nil, err
	}
	defer response.Body.Close()
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	switch {
	case response.StatusCode == http.StatusMisdirectedRequest:
		return nil, errors.New("it does not answer for this name: put it into http.hosts there")
	case response.StatusCode == http.StatusNotFound:
		return nil, errors.New("it has no /status: it is an older version, or another program")
	case response.StatusCode != http.StatusOK || kind != "application/json":
		return nil, fmt.Errorf("another program answers there (HTTP %d)", response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, mostAnswer+1))
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("its answer ends early: %w", err)
	case len(body) > mostAnswer:
		return nil, errors.New("another program answers there: the answer is too long")
	}
	var in monitoring.Instance
	if json.Unmarshal(body, &in) != nil || in.At.IsZero() || in.Process.PID == 0 || in.Process.Slot == "" {
		return nil, errors.New("another program answers there: the answer is not that of an instance")
	}
	if in.Process.Slot != c.Source.Slot || in.Process.Name != c.Name {
		return nil, fmt.Errorf("another connector answers there: %q on slot %q", in.Process.Name, in.Process.Slot)
	}
	return &in, nil
}

// askable returns the address at which the server of http.listen can be asked from here.
func askable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.Is6() {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

// askInstances asks the instances, and adds what they say to the status.
func (r *statusReader) askInstances(ctx context.Context) {
	var addresses []string
	if r.cfg.Listen != "" {
		addresses = append(addresses, askable(r.cfg.Listen))
	} else {
		r.status.Unknown = append(r.status.Unknown, "rates, lag in seconds and when a sink will have caught up: http.listen is off here, so no instance is asked")
	}
	var leads *monitoring.Instance
	for _, a := range r.cfg.askAll(ctx, addresses) {
		if a.err != nil {
			r.status.Unknown = append(r.status.Unknown, fmt.Sprintf("what the instance at %s says (http.listen): %v", a.address, a.err))
			continue
		}
		if r.ofOtherDatabase(a) {
			continue
		}
		in := a.instance
		shift := r.status.At.Sub(in.At)
		known := slices.ContainsFunc(r.status.Instances, func(o StatusInstance) bool { return o.Host == in.Process.Host && o.PID == in.Process.PID })
		if known { // it has two addresses
			continue
		}
		shown := StatusInstance{
			Role: in.Role, Host: in.Process.Host, PID: in.Process.PID, Version: in.Process.Version, Address: a.address, Health: in.Health.Status,
			Started: shifted(in.Process.Started, shift), Since: shifted(in.Since, shift),
		}
		if in.LastError != nil && !in.Streaming {
			shown.LastError = in.LastError.Text
		}
		r.status.Instances = append(r.status.Instances, shown)
		if in.Role == monitoring.RoleLeader && in.Streaming {
			leads = in
		}
	}
	if leads != nil {
		r.addLeader(leads)
	}
}

// ofOtherDatabase reports whether an instance works on a database of another name, and notes it. Addresses cannot be compared: the same
// server may have several.
func (r *statusReader) ofOtherDatabase(a answer) bool {
	if name := a.instance.Process.Database.Name; name != r.status.Database.Name {
		r.status.Unknown = append(r.status.Unknown, fmt.Sprintf("the instance at %s works on another database: %q", a.address, name))
		return true
	}
	return false
}

// addLeader adds what only the instance that streams knows.
func (r *statusReader) addLeader(in *monitoring.Instance) {
	shift := r.status.At.Sub(in.At)
	slot := r.status.Slot
	if slot == nil { // the database could not be read
		slot = &StatusSlot{Name: r.cfg.Source.Slot, State: SlotStreams}
		r.status.Slot = slot
	}
	if s := in.Stream; s != nil && (slot.State == SlotStreams || slot.State == SlotUnseen) {
		slot.LagSeconds, slot.WALRate = &s.LagSeconds, s.WALRate
		slot.Forecast, slot.CaughtUpAt = s.Forecast.Trend, shifted(s.Forecast.CaughtUpAt, shift)
		if slot.LagBytes == nil {
			slot.LagBytes = &s.LagBytes
		}
		if s.WALRate != nil && *s.WALRate > 0 && slot.LostAfterBytes != nil {
			slot.LostAfterSeconds = new(max(0, float64(*slot.LostAfterBytes)) / *s.WALRate)
		}
	}
	for i := range in.Sinks {
		r.addSink(&in.Sinks[i], shift)
	}
}

func (r *statusReader) addSink(in *monitoring.SinkReport, shift time.Duration) {
	i := slices.IndexFunc(r.status.Sinks, func(s StatusSink) bool { return s.Name == in.Name })
	if i < 0 {
		i = len(r.status.Sinks)
		r.status.Sinks = append(r.status.Sinks, StatusSink{Name: in.Name, Type: in.Type, Configured: true, Condition: conditionUnknown})
	}
	s := &r.status.Sinks[i]
	if in.InSession && in.Condition != "" {
		s.Condition, s.Since, s.Cause, s.AsksAt, s.Detail = in.Condition, shifted(in.Since, shift), in.Cause, shifted(in.AsksAt, shift), in.Detail
	}
	if rows := in.Rows; rows != nil {
		s.Rows = StatusRows{Parked: &rows.Parked, Dead: &rows.DeadLetters}
		if rows.Parked > 0 {
			s.Rows.OldestSeconds = &rows.OldestSeconds
		}
	}
	if in.Rate != nil {
		s.RateNow, s.RateMinute = &in.Rate.DeliveredNow, &in.Rate.DeliveredMinute
	}
	s.Forecast, s.CaughtUpAt = in.Forecast.Trend, shifted(in.Forecast.CaughtUpAt, shift)
}

// shifted returns a time of an instance by the clock of the status, or nil if it is zero.
func shifted(t time.Time, by time.Duration) *time.Time {
	if t.IsZero() {
		return nil
	}
	return utcOrNil(t.Add(by))
}
