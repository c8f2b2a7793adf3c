package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
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

// strangerError says that whoever answers is no instance of the connector.
type strangerError string

func (e strangerError) Error() string { return string(e) }

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
		return nil, strangerError(fmt.Sprintf("another program answers there (HTTP %d)", response.StatusCode))
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, mostAnswer+1))
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("its answer ends early: %w", err)
	case len(body) > mostAnswer:
		return nil, strangerError("another program answers there: the answer is too long")
	}
	var in monitoring.Instance
	if json.Unmarshal(body, &in) != nil || in.At.IsZero() || in.Process.PID == 0 || in.Process.Slot == "" {
		return nil, strangerError("another program answers there: the answer is not that of an instance")
	}
	if in.Process.Slot != c.Source.Slot || in.Process.Name != c.Name {
		return nil, strangerError(fmt.Sprintf("another connector answers there: %q on slot %q", in.Process.Name, in.Process.Slot))
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

// addresses returns where the instances that have been found in the database can be asked, and that of http.listen.
func (c *StatusConfig) addresses(found []ledger.Instance) []string {
	host, _ := os.Hostname() // without it only those that listen for other hosts are asked
	all := []string{}
	if c.Listen != "" {
		all = append(all, askable(c.Listen))
	}
	for i := range found {
		all = append(all, found[i].StatusAddresses(host)...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// askInstances asks the instances that have been found in the database, and that of http.listen, and adds what they say.
func (r *statusReader) askInstances(ctx context.Context) {
	host, _ := os.Hostname()
	answers := r.cfg.askAll(ctx, r.cfg.addresses(r.found))
	taken := r.listenIsTaken(answers)
	var leads *monitoring.Instance
	idle := false // a leader does not stream
	for i := range r.found {
		a := answerOf(&r.found[i], r.found[i].StatusAddresses(host), answers)
		r.status.Instances = append(r.status.Instances, r.shownInstance(&r.found[i], a))
	}
	for i := range answers {
		a := &answers[i]
		if a.err != nil || r.ofOtherDatabase(a) {
			continue
		}
		idle = idle || a.instance.Role == monitoring.RoleLeader && !a.instance.Streaming
		known := slices.ContainsFunc(r.status.Instances, func(o StatusInstance) bool {
			return o.PID == a.instance.Process.PID && o.Host == a.instance.Process.Host
		})
		if !known {
			r.status.Instances = append(r.status.Instances, r.shownInstance(nil, a))
		}
		if a.instance.Role == monitoring.RoleLeader && a.instance.Streaming {
			leads = a.instance
		}
	}
	if leads != nil {
		r.addLeader(leads)
		return
	}
	if r.status.Slot != nil && r.status.Slot.State != SlotStreams && r.status.Slot.State != SlotUnseen {
		return // nobody could say more
	}
	why := "the instance that streams could not be asked"
	if idle {
		why = "the leader does not stream"
	} else if len(r.found) == 0 && r.cfg.Listen == "" {
		why = "http.listen is off here, and no instance was found in the database"
	} else if i := slices.IndexFunc(answers, func(a answer) bool { return a.err != nil }); len(r.found) == 0 && i >= 0 && !taken {
		why = fmt.Sprintf("%s was asked: %v", answers[i].address, answers[i].err)
	}
	r.status.Unknown = append(r.status.Unknown, "rates, the lag in seconds, objectives, what verify has found, and when a sink will have caught up: "+why)
}

// listenIsTaken reports whether another program answers at http.listen, where an instance with this configuration could not start, and notes
// it.
func (r *statusReader) listenIsTaken(answers []answer) bool {
	for i := range answers {
		if _, ok := errors.AsType[strangerError](answers[i].err); ok && r.cfg.Listen != "" && answers[i].address == askable(r.cfg.Listen) {
			r.status.Unknown = append(r.status.Unknown, fmt.Sprintf("an instance at http.listen, %s: %v", r.cfg.Listen, answers[i].err))
			return true
		}
	}
	return false
}

// answerOf returns the answer of an instance, which names the instance's own host and pid; or one that says why there is none.
func answerOf(i *ledger.Instance, addresses []string, answers []answer) *answer {
	failed := &answer{err: errors.New("it listens only on its own host, at " + i.HTTP)}
	switch {
	case i.PID == 0:
		failed.err = errors.New("it does not say who it is: it is an older version, or another program")
	case i.HTTP == "":
		failed.err = errors.New("it has no HTTP server: http.listen is off there, or it runs within a service")
	}
	for _, address := range addresses {
		for n := range answers {
			a := &answers[n]
			if a.address != address {
				continue
			}
			if a.err == nil && a.instance.Process.PID == i.PID && i.IsOn(a.instance.Process.Host) {
				return a
			}
			failed = a
			if a.err == nil {
				failed = &answer{address: address, err: errors.New("another instance answers at " + address)}
			}
		}
	}
	return failed
}

// shownInstance returns what the database and the instance itself say of an instance. The database may not know it.
func (r *statusReader) shownInstance(i *ledger.Instance, a *answer) (s StatusInstance) {
	if i != nil {
		s = StatusInstance{Host: i.Host, PID: i.PID, Since: utcOrNil(i.LeaderSince)}
		switch {
		case i.Leader:
			s.Role = monitoring.RoleLeader
		case i.StandsBy:
			s.Role = monitoring.RoleStandby
		}
	}
	s.Address = a.address
	if a.err != nil {
		s.Error = a.err.Error()
		return s
	}
	in := a.instance
	shift := r.status.At.Sub(in.At)
	s.Host, s.PID, s.Version, s.Health = in.Process.Host, in.Process.PID, in.Process.Version, in.Health.Status
	s.Started, s.Since = shifted(in.Process.Started, shift), shifted(in.Since, shift)
	if s.Role == "" {
		s.Role = in.Role
	}
	if in.LastError != nil && !in.Streaming {
		s.LastError = in.LastError.Text
	}
	return s
}

// ofOtherDatabase reports whether an instance works on a database of another name, and notes it. Addresses cannot be compared: the same
// server may have several.
func (r *statusReader) ofOtherDatabase(a *answer) bool {
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
		if s.Kept != nil && !s.Kept.LostAt.IsZero() {
			slot.LostAfterSeconds = new(max(0, s.Kept.LostAt.Sub(in.At).Seconds()))
		}
	}
	if c := r.status.Cleanup; c != nil && in.Cleanup != nil {
		c.LastPassAt = shifted(in.Cleanup.EndedAt, shift)
	}
	if v := in.Verify; v != nil {
		v.UpTo, v.WorkedAt = later(v.UpTo, shift), later(v.WorkedAt, shift)
		r.status.Verify = v
	}
	for i := range in.Sinks {
		r.addSink(&in.Sinks[i], shift)
	}
	r.ails = ailingOf(in.Health.Components)
}

// ailing is a component of an instance that is not well, or several with the same detail.
type ailing struct {
	names  []string
	level  monitoring.Level
	detail string
}

// ailingOf returns which components are not well, without those of which the screen tells anyway: sinks, and the cleanup.
func ailingOf(components map[string]monitoring.Component) (list []ailing) {
	for _, name := range slices.Sorted(maps.Keys(components)) {
		c := components[name]
		if c.Status != monitoring.LevelDegraded && c.Status != monitoring.LevelFailed || strings.HasPrefix(name, "sink:") || name == "keeper:cleanup" {
			continue
		}
		name = strings.TrimPrefix(name, "keeper:")
		if i := slices.IndexFunc(list, func(a ailing) bool { return a.level == c.Status && a.detail == c.Detail }); i >= 0 {
			list[i].names = append(list[i].names, name)
			continue
		}
		list = append(list, ailing{[]string{name}, c.Status, c.Detail})
	}
	return list
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
		s.State, s.OldestUndeliveredAt = in.State, shifted(in.OldestUndeliveredAt, shift)
		s.Lanes = &StatusLanes{Running: in.Lanes, Working: in.Working, CatchingUp: in.CatchingUp, Held: in.Held, InFlight: in.InFlight}
		if s.Condition != monitoring.ConditionSuspect { // the instance knows it earlier than the ledger
			s.TriedRate = 0
		}
	}
	if at := shifted(in.DeliveredAt, shift); at != nil {
		s.DeliveredAt = at
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
	s.Objective = in.Objective
	if b := in.Backlog; b != nil {
		b.Filed = b.Filed.Add(shift).UTC()
		s.Backlog = b
	} else if in.InSession {
		s.Backlog = nil // it has finished meanwhile
	}
}

// later returns a time of an instance by the clock of the status.
func later(t time.Time, by time.Duration) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(by).UTC()
}

// shifted returns a time of an instance by the clock of the status, or nil if it is zero.
func shifted(t time.Time, by time.Duration) *time.Time {
	if t.IsZero() {
		return nil
	}
	return utcOrNil(t.Add(by))
}
