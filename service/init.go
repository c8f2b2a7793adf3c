package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// InitOptions say how Init works.
type InitOptions struct {
	// AdminDSN is the connection string of a login with an owner's rights. By default it is the configuration's
	// source.dsn. If it is of another login than that, Init also grants the login of source.dsn what the connector
	// needs.
	AdminDSN string
	// Backlog says what becomes of the rows that are in the outbox when the slot is made.
	Backlog provision.Backlog
	// Parked says what becomes of what the ledger still owes to sinks when the slot is made.
	Parked provision.ParkedChoice
	// Partitioned makes an event_outbox that is partitioned by UTC day. Init refuses it where a plain one exists, and for a mapped table.
	Partitioned bool
	// Timeout bounds each of two waits: for another process that makes or drops the same things, and for open transactions when
	// the slot is created. 0 means a minute.
	Timeout time.Duration
	// Waiting is called with the open transactions that Init waits for. It is called on another goroutine. It may be nil.
	Waiting func([]provision.Blocker)
	// WaitingForLock is called with a description of the connection that makes or drops the same things, while Init waits for its end. It
	// may be nil.
	WaitingForLock func(holder string)
}

// InitResult says what Init has made. What it has not made existed before.
type InitResult struct {
	Migrations         []string `json:"migrations"`
	PublicationCreated bool     `json:"publication_created"`
	SlotCreated        bool     `json:"slot_created"`
	FailoverSet        bool     `json:"failover_set"` // of a slot that was there
	// ConsistentPoint is the LSN from which on a new slot delivers what commits.
	ConsistentPoint string `json:"consistent_point,omitempty"`
	// Jobs is how many sinks have a job that delivers the rows from before the slot, and Rows about how many rows each of them compares.
	// RowsCounted says that the number is exact.
	Jobs        int   `json:"jobs,omitempty"`
	Rows        int64 `json:"rows,omitempty"`
	RowsCounted bool  `json:"rows_counted,omitempty"`
	// Discarded is how many parked events were given up.
	Discarded int64 `json:"discarded,omitempty"`
	// Deletes says what a connector with this configuration deletes, as Deletes does.
	Deletes []string `json:"deletes"`
	// Warnings name what should be mended, but is no reason to refuse.
	Warnings []string `json:"warnings,omitempty"`
}

// Init makes what a connector needs and what does not exist yet: tables, publication, slot and checkpoint. It may be called
// again, and by several processes at once. It checks everything before it makes anything, so that a refusal leaves nothing half
// made. The error may have a method ExitCode() int.
func Init(ctx context.Context, cfg config.Config, o InitOptions) (InitResult, error) {
	result, err := initAll(ctx, cfg, o)
	return result, replication.ExplainUnreachable(err)
}

// initAll is Init, except that it does not say in words that PostgreSQL cannot be reached.
func initAll(ctx context.Context, cfg config.Config, o InitOptions) (InitResult, error) {
	result, err := initStepByStep(ctx, cfg, o)
	if exitcode.Of(err) == exitcode.Failure { // a right that plan does not know of
		err = provision.NeedsOwner(err)
	}
	return result, err
}

func initStepByStep(ctx context.Context, cfg config.Config, o InitOptions) (InitResult, error) {
	result := InitResult{Deletes: Deletes(cfg)}
	setup, err := setupWithSinks(cfg, o)
	if err != nil {
		return result, err
	}
	if _, err := plan(ctx, cfg, setup, o); err != nil {
		return result, err
	}
	m, err := migrationOptions(ctx, cfg, setup)
	if err != nil {
		return result, err
	}
	m.Partitioned, m.Version = o.Partitioned, buildinfo.Read().Version
	m.Timeout, m.WaitingForLock = o.Timeout, o.WaitingForLock
	if result.Migrations, err = migrations.Pending(ctx, setup.DSN, m); err != nil {
		return result, err
	}
	if err := migrations.Apply(ctx, setup.DSN, m); err != nil {
		return result, migrationError(err)
	}
	err = provision.WithConn(ctx, setup.DSN, setup.Source, func(conn *pgx.Conn) error {
		warning, err := migrations.Creators(ctx, conn, m.Schema)
		if warning != "" {
			result.Warnings = append(result.Warnings, warning)
		}
		if err != nil || m.Mapped {
			return err
		}
		return ledger.Schema(m.Schema).KeepOutboxPartitions(ctx, conn)
	})
	if err != nil {
		return result, err
	}
	if err := grant(ctx, cfg, setup); err != nil {
		return result, err
	}
	made, err := provision.Setup(ctx, setup)
	result.Warnings = append(result.Warnings, made.Warnings...)
	if err != nil {
		return result, err
	}
	result.PublicationCreated, result.SlotCreated, result.FailoverSet = made.PublicationCreated, made.SlotCreated, made.FailoverSet
	if made.SlotCreated {
		result.ConsistentPoint = made.ConsistentPoint.String()
		result.Jobs, result.Rows, result.RowsCounted, result.Discarded = made.Jobs, made.Rows.Rows, made.Rows.Exact, made.Discarded
	}
	return result, nil
}

// InitPlan returns in words, a step each, what Init would do. It changes nothing.
func InitPlan(ctx context.Context, cfg config.Config, o InitOptions) ([]string, error) {
	setup, err := setupWithSinks(cfg, o)
	if err != nil {
		return nil, err
	}
	steps, err := plan(ctx, cfg, setup, o)
	if err != nil {
		return nil, replication.ExplainUnreachable(err)
	}
	m, err := migrationOptions(ctx, cfg, setup)
	if err != nil {
		return nil, err
	}
	pending, err := migrations.Pending(ctx, setup.DSN, m)
	if err != nil {
		return nil, err
	}
	first := []string{}
	for _, name := range pending {
		first = append(first, fmt.Sprintf("apply %s in schema %s", name, cfg.Source.LedgerSchema))
	}
	if role := grantee(cfg, setup); role != "" {
		first = append(first, fmt.Sprintf("grant role %s what it needs", role))
	}
	return append(first, steps...), nil
}

// plan returns the steps that provision.Plan finds. It reads the ledger, if there is one, only after checkOwners has
// accepted its owners.
func plan(ctx context.Context, cfg config.Config, setup provision.SetupConfig, o InitOptions) ([]string, error) {
	if err := checkPartitioned(setup.Source, o); err != nil {
		return nil, err
	}
	if err := sameDatabase(cfg, setup.DSN); err != nil {
		return nil, err
	}
	if err := checkOwners(ctx, cfg, setup.DSN, o); err != nil {
		return nil, err
	}
	pending, err := migrations.Pending(ctx, setup.DSN, migrations.Options{Schema: cfg.Source.LedgerSchema})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42501" {
		err = nil // Plan names the right to read which migrations were applied, among the others that the login lacks
	}
	if err != nil {
		return nil, err
	}
	setup.MakesTables = len(pending) > 0
	return provision.Plan(ctx, setup)
}

// checkOwners refuses a ledger whose tables belong to roles that are not trusted, and a plain outbox where a partitioned one is asked for.
func checkOwners(ctx context.Context, cfg config.Config, dsn string, o InitOptions) error {
	return provision.WithConn(ctx, dsn, source(cfg), func(conn *pgx.Conn) error {
		m := migrations.Options{Schema: cfg.Source.LedgerSchema, Mapped: source(cfg).Mapped(), Partitioned: o.Partitioned}
		if err := migrations.Check(ctx, conn, m); err != nil {
			return err
		}
		return migrations.CheckPartitioned(ctx, conn, m)
	})
}

// InitSQL returns SQL for an administrator to run where Init shall have no more rights than the connector. It makes tables,
// publication and two logins with the least privileges that they need. Init then makes slot and checkpoint. InitSQL reads the
// database only if the outbox is a mapped table, because the ledger needs the type of that table's ids.
func InitSQL(ctx context.Context, cfg config.Config, o InitOptions) (string, error) {
	setup := setupConfig(cfg, o)
	m := migrations.Options{Schema: cfg.Source.LedgerSchema, Partitioned: o.Partitioned}
	if err := checkPartitioned(setup.Source, o); err != nil {
		return "", err
	}
	if setup.Source.Mapped() {
		var err error
		if m, err = migrationOptions(ctx, cfg, setup); err != nil {
			return "", err
		}
	}
	text, err := migrations.SQL(m)
	if err != nil {
		return "", err
	}
	roles := provision.Roles{SQL: "outbox_cdc", Replication: "outbox_cdc_replication", SQLConnections: cfg.Source.MaxConnections}
	if app := userOf(string(cfg.Source.DSN)); app != "" && app != userOf(setup.DSN) {
		roles.SQL = app
	}
	if stream := userOf(string(cfg.Source.ReplicationDSN)); stream != "" && stream != userOf(setup.DSN) {
		roles.Replication = stream
	}
	return text + provision.SQLText(setup.Source, roles), nil
}

// checkPartitioned refuses InitOptions.Partitioned for a table that Init does not make.
func checkPartitioned(s provision.Source, o InitOptions) error {
	if o.Partitioned && s.Mapped() {
		return exitcode.Errorf(exitcode.Config, "--partitioned is for event_outbox, which init makes; source.table is %s, a table of your own: partition it yourself "+
			"(docs/partitions.md#mapped)", s.Table)
	}
	return nil
}

func setupConfig(cfg config.Config, o InitOptions) provision.SetupConfig {
	return provision.SetupConfig{
		Source:         sourceOf(cfg, o.AdminDSN),
		DSN:            cmp.Or(o.AdminDSN, string(cfg.Source.DSN)),
		ReplicationDSN: string(cfg.Source.ReplicationDSN),
		Connector:      cfg.Name, Backlog: o.Backlog, Parked: o.Parked, Timeout: o.Timeout, Waiting: o.Waiting, WaitingForLock: o.WaitingForLock,
	}
}

// sourceOf is source for a command that may have an administrator's connection string. If the configuration has no source.dsn, it has taken
// over that one (config.Options.DSN). Then the hosts by which the connector reaches the server are unknown: the administrator may reach it
// by other names.
func sourceOf(cfg config.Config, adminDSN string) provision.Source {
	s := source(cfg)
	if string(cfg.Source.DSN) == adminDSN {
		s.Hosts = ""
	}
	return s
}

func source(cfg config.Config) provision.Source {
	s := cfg.Source
	return provision.Source{
		Table: s.Table, LedgerSchema: s.LedgerSchema, Slot: s.Slot, Publication: s.Publication, Columns: decoder.Columns(s.Columns),
		OrderBy: s.Order(), Failover: s.Failover, Cleanup: Retention(cfg).Deletes(), Hosts: dsn.Hosts(string(s.DSN)),
	}
}

// migrationOptions finds out which type the event ids of the ledger must have: that of the ids of an outbox that exists.
func migrationOptions(ctx context.Context, cfg config.Config, setup provision.SetupConfig) (migrations.Options, error) {
	m := migrations.Options{Schema: cfg.Source.LedgerSchema, Mapped: setup.Source.Mapped()}
	table, err := provision.FindTable(ctx, setup.DSN, setup.Source)
	if err != nil {
		return m, err
	}
	switch {
	case table != nil:
		m.EventIDType = table.EventIDType()
	case m.Mapped:
		return m, provision.TableMissing(setup.Source)
	}
	return m, nil
}

// grantee returns the login of source.dsn if another login does the work of Init, and "" otherwise.
func grantee(cfg config.Config, setup provision.SetupConfig) string {
	if app := userOf(string(cfg.Source.DSN)); app != userOf(setup.DSN) {
		return app
	}
	return ""
}

// userOf returns the user of a DSN. For a DSN that cannot be parsed it returns "": the first connection reports the error.
func userOf(dsn string) string {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return ""
	}
	return c.User
}

func grant(ctx context.Context, cfg config.Config, setup provision.SetupConfig) error {
	role := grantee(cfg, setup)
	if role == "" {
		return nil
	}
	return provision.Grant(ctx, setup.DSN, setup.Source, role)
}

// setupWithSinks returns the configuration of a Setup that registers the sinks.
func setupWithSinks(cfg config.Config, o InitOptions) (setup provision.SetupConfig, err error) {
	setup = setupConfig(cfg, o)
	setup.Processors, err = processorsOf(cfg)
	return setup, err
}

// processorsOf returns the sinks in the form in which the ledger registers them.
func processorsOf(cfg config.Config) ([]ledger.Processor, error) {
	sinks, err := buildSinks(cfg, BuildOptions{})
	if err != nil {
		return nil, err
	}
	var processors []ledger.Processor
	for _, s := range sinks {
		p := ledger.Processor{Name: s.Name, Type: s.Type, Configuration: s.Description, RenamedFrom: s.RenamedFrom}
		if s.Backlog {
			p.Backlog = &ledger.NewJob{Reason: ledger.JobOfSink}
		}
		processors = append(processors, p)
	}
	return processors, nil
}

// migrationError attaches the exit code to an error of the migrations that no further try can mend.
func migrationError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "42P07": // tables with these names exist, and are not ours
		return exitcode.With(exitcode.Config, err)
	case "42501":
		return exitcode.Errorf(exitcode.Privilege, "%w; give an owner's login by --dsn or OUTBOX_ADMIN_URL, or let an administrator run what --print-sql prints", err)
	}
	return err
}

// initialize is Init as a connector does it before its first session. It logs what Init reports. It does not turn "PostgreSQL
// cannot be reached" into an exit code, because the connector tries again.
func initialize(ctx context.Context, cfg config.Config, logger *slog.Logger) error {
	result, err := initAll(ctx, cfg, InitOptions{
		Waiting: func(b []provision.Blocker) {
			logger.Warn("slot creation waits for open transactions", "slot", cfg.Source.Slot, "for", blockerText(b))
		},
		WaitingForLock: func(holder string) {
			logger.Warn("another session makes or drops the same, and is waited for", "slot", cfg.Source.Slot, "for", holder)
		},
	})
	if err != nil {
		return err
	}
	for _, warning := range result.Warnings {
		logger.Warn("the database should be set up otherwise", "cause", warning)
	}
	logger.Info("initialised", "slot", cfg.Source.Slot, "migrations", result.Migrations, "publication_created", result.PublicationCreated,
		"slot_created", result.SlotCreated, "deletes", result.Deletes)
	return nil
}

func blockerText(blockers []provision.Blocker) string {
	var texts []string
	for _, b := range blockers {
		texts = append(texts, b.String())
	}
	return strings.Join(texts, ", ")
}
