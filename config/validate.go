package config

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
)

// validator checks values and how they fit together. It changes nothing.
type validator struct {
	config  *Config
	options Options
	names   Names
	isType  func(string) bool
	mistake func(path, format string, args ...any)
	warn    func(format string, args ...any)
	whence  func(path, value string) string // a value with the place where it was written
}

func (v *validator) run() {
	c := v.config
	if strings.TrimSpace(c.Name) != c.Name || len(c.Name) > 200 || hasControl(c.Name) || !utf8.ValidString(c.Name) {
		v.mistake("name", "must be at most 200 characters, without control characters or spaces around")
	}
	v.source(&c.Source)
	if !slices.ContainsFunc(c.Sinks, func(s Sink) bool { return !s.Abandoned }) && !v.options.NoSinks {
		v.mistake("sinks", "missing; write at least one%s", v.orSet(publisherType))
	}
	v.sinks(c.Sinks)
	v.routes(c)
	v.delivery(&c.Delivery)
	v.between("breaker.max_failures", c.Breaker.MaxFailures, 1, 1_000_000)
	v.lasts("breaker.reset_timeout", c.Breaker.ResetTimeout, 10*time.Millisecond, 24*time.Hour)
	v.retention(c)
	v.sla("sla", SinkSLA{Within: &c.SLA.Within, Objective: &c.SLA.Objective})
	v.slas(c.Sinks)
	if err := CheckMetricsPrefix(c.Metrics.Prefix); err != nil {
		v.mistake("metrics.prefix", "%s", err)
	}
	if c.HTTP.Listen != "" && !isListen(c.HTTP.Listen) {
		v.mistake("http.listen", "%q is no address to listen on; write 127.0.0.1:9640, :9640 for all interfaces, or off for no server", c.HTTP.Listen)
	}
	v.tracing(&c.Tracing)
	for i, h := range c.HTTP.Hosts {
		if !isHost(h) {
			v.mistake(fmt.Sprintf("http.hosts[%d]", i), "%s is no host; write a name or an address, without a port", quoted(h))
		}
	}
}

// orSet is the advice to set a variable instead, where variables are read.
func (v *validator) orSet(variable string) string {
	if v.options.NoVariables {
		return ""
	}
	return ", or set " + variable
}

// CheckMetricsPrefix says why the names of metrics cannot begin with prefix; nil if they can.
func CheckMetricsPrefix(prefix string) error {
	if !metricPrefix.MatchString(prefix) {
		return fmt.Errorf("%q cannot begin the name of a metric; letters, digits and _ can", prefix)
	}
	return nil
}

var (
	slotName     = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	tableName    = regexp.MustCompile(`^[^.]{1,63}\.[^.]{1,63}$`)
	metricPrefix = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)?$`)
	sinkName     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
)

func (v *validator) source(s *Source) {
	switch {
	case v.options.NoDSN:
	case s.DSN == "":
		v.mistake("source.dsn", "missing; write it, or set DATABASE_URL")
	default:
		v.dsn("source.dsn", s.DSN)
	}
	if s.ReplicationDSN != s.DSN {
		v.dsn("source.replication_dsn", s.ReplicationDSN)
	}
	v.between("source.max_connections", s.MaxConnections, 5, 1000)
	if !slotName.MatchString(s.Slot) {
		v.mistake("source.slot", "%q is no name for a slot: 1 to 63 of a-z, 0-9 and _", s.Slot)
	}
	v.identifier("source.publication", s.Publication)
	v.oneOf("source.on_slot_loss", s.OnSlotLoss, SlotLossStop, SlotLossResync)
	v.identifier("source.ledger_schema", s.LedgerSchema)
	if strings.Contains(s.Table, `"`) {
		v.mistake("source.table", "%s holds quotes; write both names without, in the case that they have in the database", s.Table)
	} else if !tableName.MatchString(s.Table) || hasControl(s.Table) {
		v.mistake("source.table", "%q is no table; write it as schema.table, such as public.event_outbox", s.Table)
	}
	columns := []struct {
		key, name string
		optional  bool
	}{
		{"id", s.Columns.ID, false},
		{"aggregate_type", s.Columns.AggregateType, false},
		{"aggregate_id", s.Columns.AggregateID, false},
		{"event_type", s.Columns.EventType, false},
		{"event_version", s.Columns.EventVersion, true},
		{"payload", s.Columns.Payload, false},
		{"metadata", s.Columns.Metadata, true},
		{"created_at", s.Columns.CreatedAt, true},
		{"max_retries", s.Columns.MaxRetries, true},
		{"tenant_id", s.Columns.TenantID, true},
		{"correlation_id", s.Columns.CorrelationID, true},
		{"causation_id", s.Columns.CausationID, true},
	}
	for i, name := range s.OrderBy {
		path := fmt.Sprintf("source.order_by[%d]", i)
		v.identifier(path, name)
		if slices.Contains(s.OrderBy[:i], name) {
			v.mistake(path, "column %q is named twice", name)
		}
	}
	for _, c := range columns {
		switch path := "source.columns." + c.key; {
		case c.name != "":
			v.identifier(path, c.name)
		case !c.optional:
			v.mistake(path, "an event cannot be without it; write the name of a column")
		}
	}
}

// dsn checks a connection string.
func (v *validator) dsn(path string, d DSN) {
	if !utf8.ValidString(string(d)) {
		v.mistake(path, "is not UTF-8")
		return
	}
	c, err := dsn.Parse(string(d))
	if err != nil {
		v.mistake(path, "%s", strings.ReplaceAll(err.Error(), "\n", "; it ")) // a line for each thing that is wrong
		return
	}
	plain := !isLocal(c.Host) && c.TLSConfig == nil
	for _, f := range c.Fallbacks {
		plain = plain || !isLocal(f.Host) && f.TLSConfig == nil
	}
	if plain {
		v.warn("%s reaches a remote PostgreSQL without insisting on TLS: passwords and events may cross the network in clear; add sslmode=verify-full", v.names.Of(path))
	}
}

func (v *validator) delivery(d *Delivery) {
	v.between("delivery.batch_size", d.BatchSize, 1, 10_000)
	v.between("delivery.lanes", d.Lanes, 1, 256)
	v.lasts("delivery.timeout", d.Timeout, 100*time.Millisecond, 10*time.Minute)
	v.lasts("delivery.drain_timeout", d.DrainTimeout, 0, 10*time.Minute)
	v.between("delivery.max_retries", d.MaxRetries, 0, 1_000_000)
	v.lasts("delivery.retry.initial", d.Retry.Initial, time.Millisecond, 24*time.Hour)
	v.lasts("delivery.retry.max", d.Retry.Max, time.Millisecond, 24*time.Hour)
	if d.Retry.Initial > d.Retry.Max {
		v.mistake("delivery.retry", "initial (%v) is longer than max (%v); delays grow from the one to the other", d.Retry.Initial, d.Retry.Max)
	}
	if d.ParkAfter != parkNever {
		if after, err := parseDuration(d.ParkAfter); err != nil {
			v.mistake("delivery.park_after", "%q %v; or write never", d.ParkAfter, err)
		} else {
			v.lasts("delivery.park_after", after, 100*time.Millisecond, time.Hour)
		}
	}
	v.lasts("delivery.give_up_after", d.GiveUpAfter, 0, 10*365*24*time.Hour)
	v.oneOf("delivery.on_dead_letter", d.OnDeadLetter, DeadContinue, DeadBlock)
	v.between("delivery.max_in_flight", d.MaxInFlight, 1, 1<<20)
	if d.MaxInFlight < d.BatchSize {
		v.mistake("delivery.max_in_flight", "%d is less than batch_size (%d): no batch could ever be full", d.MaxInFlight, d.BatchSize)
	}
	v.size("delivery.max_in_flight_bytes", d.MaxInFlightBytes, MiB, 64*GiB)
	v.size("delivery.max_event_bytes", d.MaxEventBytes, KiB, GiB)
}

func (v *validator) between(path string, n, least, most int) {
	if n < least || n > most {
		v.mistake(path, "%d is not between %d and %d", n, least, most)
	}
}

func (v *validator) lasts(path string, d, least, most time.Duration) {
	if d < least || d > most {
		v.mistake(path, "%v is not between %v and %v", d, least, most)
	}
}

func (v *validator) size(path string, b, least, most Bytes) {
	if b < least || b > most {
		v.mistake(path, "%v is not between %v and %v", b, least, most)
	}
}

func (v *validator) oneOf(path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		v.mistake(path, "%q is unknown; write %s", value, strings.Join(allowed, ", "))
	}
}

// identifier checks a name that PostgreSQL might cut off or refuse. Preflight checks whether it exists.
func (v *validator) identifier(path, name string) {
	if name == "" || len(name) > 63 || hasControl(name) || !utf8.ValidString(name) {
		v.mistake(path, "%q is no identifier: 1 to 63 bytes", name)
	}
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// isHostPort reports whether something can be reached at this address.
func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && host != "" && isPort(port) && !strings.ContainsAny(host, " \t\r\n/@")
}

// isListen reports whether a server can listen at this address. An empty host means all interfaces, and port 0 a port that the
// system chooses.
func isListen(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && (port == "0" || isPort(port)) && !strings.ContainsAny(host, " \t\r\n/@")
}

// isPort reports whether something can be reached at this port.
func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// isHost reports whether this is a name or an address, without a port.
func isHost(s string) bool {
	if address, ok := strings.CutPrefix(s, "["); ok {
		address, closed := strings.CutSuffix(address, "]")
		return closed && net.ParseIP(address) != nil
	}
	return net.ParseIP(s) != nil || s != "" && !strings.ContainsAny(s, "/@?#*:[]%, \t\r\n") && !hasControl(s)
}

// isLocal reports whether what is sent to host stays on this machine: host is a loopback address or the directory of a socket.
func isLocal(host string) bool {
	if host == "localhost" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
