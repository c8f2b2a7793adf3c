// Package config turns a YAML file and the environment into a validated Config. It is strict: an unknown key is an
// error, and every mistake is reported at once, with its line and path. It knows no other package of ours: service
// translates a Config into what each of them takes.
package config

import "time"

// parkNever is the value of Delivery.ParkAfter that keeps an undelivered event in its lane and lets the slot wait.
const parkNever = "never"

// What a dead letter does to its aggregate.
const (
	DeadContinue = "continue" // its later events are delivered
	DeadBlock    = "block"    // its later events wait until a person acts
)

// Config is the whole configuration of one connector.
type Config struct {
	// Name is the connector's name in the ledger: SERVICE_NAME by default, else the slot's name.
	Name   string `yaml:"name"`
	Source Source `yaml:"source"`
	Sinks  []Sink `yaml:"sinks"`
	// Routes are tried in order; the first match wins. If there are none, every event goes to every sink.
	Routes   []Route  `yaml:"routes"`
	Delivery Delivery `yaml:"delivery"`
	Breaker  Breaker  `yaml:"breaker"`
	// Retention says what is deleted.
	Retention Retention `yaml:"retention"`
	// SLA is the objective of the sinks that have none of their own.
	SLA     SLA     `yaml:"sla"`
	Metrics Metrics `yaml:"metrics"`
	HTTP    HTTP    `yaml:"http"`
	Tracing Tracing `yaml:"tracing"`

	// Abandoned lists removed sinks whose parked events may be dropped, by name.
	Abandoned []string `yaml:"-"`
}

// Source is the outbox and how it is read.
type Source struct {
	// DSN is the connection string for SQL: for the recorder, the checks and init.
	DSN DSN `yaml:"dsn"`
	// DSNPlace and ReplicationDSNPlace say where the connection strings were written, for messages: outbox.yaml:3, or the name of a
	// variable.
	DSNPlace            string `yaml:"-"`
	ReplicationDSNPlace string `yaml:"-"`
	// ReplicationDSN is the connection string for the stream. Its role needs REPLICATION. By default it is DSN.
	ReplicationDSN DSN `yaml:"replication_dsn"`
	// MaxConnections bounds the SQL connections: recorder, lease and listener have one each, and the rest is a pool. The replication
	// connection is one more.
	MaxConnections int    `yaml:"max_connections"`
	Slot           string `yaml:"slot"`
	Publication    string `yaml:"publication"`
	// Failover asks for a slot that standbys have a copy of (PostgreSQL 17 and later).
	Failover bool `yaml:"failover"`
	// OnSlotLoss is SlotLossStop or SlotLossResync.
	OnSlotLoss string `yaml:"on_slot_loss"`
	// Table is the outbox as schema.table.
	Table string `yaml:"table"`
	// LedgerSchema holds the connector's own tables; the schema of Table by default.
	LedgerSchema string `yaml:"ledger_schema"`
	// Columns are the names of the outbox's columns.
	Columns Columns `yaml:"columns"`
	// OrderBy names the columns by which a backlog is walked, the oldest event first; by default created_at, if there is one. The id
	// always comes last.
	OrderBy []string `yaml:"order_by"`
}

// Order returns the columns by which a backlog is walked: OrderBy, or the default.
func (s *Source) Order() []string {
	switch {
	case len(s.OrderBy) > 0:
		return s.OrderBy
	case s.Columns.CreatedAt != "":
		return []string{s.Columns.CreatedAt, s.Columns.ID}
	}
	return []string{s.Columns.ID}
}

// What Source.OnSlotLoss may be.
const (
	SlotLossStop   = "stop"   // the process ends with exit code 70
	SlotLossResync = "resync" // it makes the slot anew and delivers what is missing
)

// Columns names the column of the outbox for each field of an event. If an optional name is empty, the outbox has no such column.
type Columns struct {
	ID            string `yaml:"id"`
	AggregateType string `yaml:"aggregate_type"`
	AggregateID   string `yaml:"aggregate_id"`
	EventType     string `yaml:"event_type"`
	EventVersion  string `yaml:"event_version"`
	Payload       string `yaml:"payload"`
	Metadata      string `yaml:"metadata"`
	CreatedAt     string `yaml:"created_at"`
	MaxRetries    string `yaml:"max_retries"`
	TenantID      string `yaml:"tenant_id"`
	CorrelationID string `yaml:"correlation_id"`
	CausationID   string `yaml:"causation_id"`
}

// Delivery is how events reach the sinks.
type Delivery struct {
	// BatchSize is the most events of one Deliver.
	BatchSize int `yaml:"batch_size"`
	// Lanes of each sink: its aggregates are shared out among them, each in order.
	Lanes int `yaml:"lanes"`
	// Timeout of one Deliver.
	Timeout time.Duration `yaml:"timeout"`
	// DrainTimeout is how long running Deliver calls may take when the process ends. One that takes longer may be
	// delivered again.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// MaxRetries is the number of retries after the first attempt, for events that have no number of their own.
	MaxRetries int   `yaml:"max_retries"`
	Retry      Retry `yaml:"retry"`
	// ParkAfter is how long a sink may make others wait before its events are parked, or "never".
	ParkAfter string `yaml:"park_after"`
	// GiveUpAfter is how long an event is tried: a failure later than that makes it a dead letter. 0 means for ever.
	GiveUpAfter time.Duration `yaml:"give_up_after"`
	// OnDeadLetter is DeadContinue or DeadBlock.
	OnDeadLetter string `yaml:"on_dead_letter"`
	// MaxInFlight and MaxInFlightBytes bound the events that are read and not yet settled: their number and their size.
	MaxInFlight      int   `yaml:"max_in_flight"`
	MaxInFlightBytes Bytes `yaml:"max_in_flight_bytes"`
	// MaxEventBytes is the size of the largest event. A larger one becomes a dead letter without its payload.
	MaxEventBytes Bytes `yaml:"max_event_bytes"`
}

// Park is ParkAfter as a duration; 0 is "never".
func (d *Delivery) Park() time.Duration {
	after, err := parseDuration(d.ParkAfter)
	if err != nil {
		return 0
	}
	return after
}

// Breaker says when a sink is left alone.
type Breaker struct {
	Enabled bool `yaml:"enabled"`
	// MaxFailures is the number of batches in a row that found the destination away.
	MaxFailures int `yaml:"max_failures"`
	// ResetTimeout is how long the sink is left alone before one event asks whether it is back. No event waits longer for a
	// destination that was away, also where the breaker is not enabled.
	ResetTimeout time.Duration `yaml:"reset_timeout"`
}

// Retry is the exponential backoff between two attempts.
type Retry struct {
	Initial time.Duration `yaml:"initial"`
	Max     time.Duration `yaml:"max"`
}

// Metrics says whether /metrics is served and how the names begin.
type Metrics struct {
	Enabled bool   `yaml:"enabled"`
	Prefix  string `yaml:"prefix"`
}

// HTTP is the server of metrics and health.
type HTTP struct {
	// Listen is host:port; empty means no server. In the file and in OUTBOX_LISTEN this is written as "off".
	Listen string `yaml:"listen"`
	// Hosts are names that a request may have in its header Host, beside localhost, 127.0.0.1 and ::1. Where Listen is no
	// loopback address and Hosts is empty, every name is answered.
	Hosts []string `yaml:"hosts,flow"`
}

// Default is the configuration before file and environment are read. It is complete, except for Source.DSN, Sinks and the values
// that follow from others (Name, ReplicationDSN, LedgerSchema, Retention).
func Default() Config {
	return Config{
		Source: Source{
			MaxConnections: 6,
			Slot:           "outbox_cdc",
			Publication:    "outbox_cdc",
			OnSlotLoss:     SlotLossStop,
			Table:          "public.event_outbox",
			Columns: Columns{
				ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", EventType: "event_type",
				EventVersion: "event_version", Payload: "payload", Metadata: "metadata", CreatedAt: "created_at",
				MaxRetries: "max_retries", TenantID: "tenant_id", CorrelationID: "correlation_id", CausationID: "causation_id",
			},
		},
		Delivery: Delivery{
			BatchSize:        500,
			Lanes:            4,
			Timeout:          30 * time.Second,
			DrainTimeout:     25 * time.Second,
			MaxRetries:       3,
			Retry:            Retry{Initial: time.Second, Max: 5 * time.Minute},
			ParkAfter:        "10s",
			OnDeadLetter:     DeadContinue,
			MaxInFlight:      32_768,
			MaxInFlightBytes: 32 * MiB,
			MaxEventBytes:    64 * MiB,
		},
		Breaker: Breaker{Enabled: true, MaxFailures: 5, ResetTimeout: time.Minute},
		SLA:     SLA{Within: time.Second, Objective: 99},
		Metrics: Metrics{Enabled: true, Prefix: "pyairtable_outbox_"},
		HTTP:    HTTP{Listen: "127.0.0.1:9640"},
		Tracing: Tracing{Protocol: protocolHTTP, SampleRatio: 1},
	}
}
