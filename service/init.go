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
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// InitOptions say how Init makes things.
type InitOptions struct {
	// AdminDSN is of a login with an owner's rights; the configuration's own by default. It then also grants the
	// configuration's login what that needs.
	AdminDSN string
	// SkipBacklog leaves undelivered what is in the outbox when the slot is made, instead of refusing.
	SkipBacklog bool
	// Timeout bounds each wait: for another process that makes or drops the same, and for open transactions when the slot is
	// created; 0 means a minute.
	Timeout time.Duration
	// Waiting is told for whom it waits, from another goroutine; it may be nil.
	Waiting func([]provision.Blocker)
	// WaitingForLock is told of the session that makes or drops the same, for whose end Init waits; it may be nil.
	WaitingForLock func(holder string)
}

// InitResult says what Init has made; what it has not made was there.
type InitResult struct {
	Migrations         []string `json:"migrations"`
	PublicationCreated bool     `json:"publication_created"`
	SlotCreated        bool     `json:"slot_created"`
	// ConsistentPoint of a new slot: what commits from here on is delivered.
	ConsistentPoint string `json:"consistent_point,omitempty"`
	// Warnings are of what is no reason to refuse.
	Warnings []string `json:"warnings,omitempty"`
}

// Init makes what a run needs and is not there yet: tables, publication, slot and checkpoint. It may be called again, and
// by several processes at once. Everything is looked at first, so that a refusal leaves nothing half made. Its
// error may have ExitCode() int.
func Init(ctx context.Context, cfg config.Config, o InitOptions) (InitResult, error) {
	result, err := initAll(ctx, cfg, o)
	return result, unreachable(err)
}

func initAll(ctx context.Context, cfg config.Config, o InitOptions) (InitResult, error) {
	var result InitResult
	setup := setupConfig(cfg, o)
	if _, err := plan(ctx, cfg, setup); err != nil {
		return result, err
	}
	m, err := migrationOptions(ctx, cfg, setup)
	if err != nil {
		return result, err
	}
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
		return err
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
	result.PublicationCreated, result.SlotCreated = made.PublicationCreated, made.SlotCreated
	if made.SlotCreated {
		result.ConsistentPoint = made.ConsistentPoint.String()
	}
	return result, registerSinks(ctx, cfg, setup, made.SlotCreated && !o.SkipBacklog)
}

// InitPlan says in words what Init would do, and changes nothing.
func InitPlan(ctx context.Context, cfg config.Config, o InitOptions) ([]string, error) {
	setup := setupConfig(cfg, o)
	steps, err := plan(ctx, cfg, setup)
	if err != nil {
		return nil, unreachable(err)
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

// plan reads the ledger, if there is one, only after it has made sure that it is not somebody else's.
func plan(ctx context.Context, cfg config.Config, setup provision.SetupConfig) ([]string, error) {
	if err := checkOwners(ctx, cfg, setup.DSN); err != nil {
		return nil, err
	}
	return provision.Plan(ctx, setup)
}

// checkOwners refuses a ledger of roles that are not trusted.
func checkOwners(ctx context.Context, cfg config.Config, dsn string) error {
	return provision.WithConn(ctx, dsn, source(cfg), func(conn *pgx.Conn) error {
		return migrations.Check(ctx, conn, migrations.Options{Schema: cfg.Source.LedgerSchema, Mapped: source(cfg).Mapped()})
	})
}

// InitSQL is what an administrator runs where Init is to have no more rights than the connector: tables, publication and
// the two logins with the least that they need. Init then makes slot and checkpoint. It reads the database only where
// the outbox is a mapped table, whose type of id decides.
func InitSQL(ctx context.Context, cfg config.Config, o InitOptions) (string, error) {
	setup := setupConfig(cfg, o)
	m := migrations.Options{Schema: cfg.Source.LedgerSchema}
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
	if app := user(string(cfg.Source.DSN)); app != "" && app != user(setup.DSN) {
		roles.SQL = app
	}
	if stream := user(string(cfg.Source.ReplicationDSN)); stream != "" && stream != user(setup.DSN) {
		roles.Replication = stream
	}
	return text + provision.SQLText(setup.Source, roles), nil
}

func setupConfig(cfg config.Config, o InitOptions) provision.SetupConfig {
	return provision.SetupConfig{
		Source:         source(cfg),
		DSN:            cmp.Or(o.AdminDSN, string(cfg.Source.DSN)),
		ReplicationDSN: string(cfg.Source.ReplicationDSN),
		SkipBacklog:    o.SkipBacklog, Timeout: o.Timeout, Waiting: o.Waiting, WaitingForLock: o.WaitingForLock,
	}
}

func source(cfg config.Config) provision.Source {
	s := cfg.Source
	return provision.Source{
		Table: s.Table, LedgerSchema: s.LedgerSchema, Slot: s.Slot, Publication: s.Publication, Columns: decoder.Columns(s.Columns),
	}
}

// migrationOptions asks an outbox that exists for the type of its ids: the ledger's must be the same.
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

// grantee is the configuration's login where another one does the work.
func grantee(cfg config.Config, setup provision.SetupConfig) string {
	if app := user(string(cfg.Source.DSN)); app != user(setup.DSN) {
		return app
	}
	return ""
}

// user of a DSN; one that cannot be parsed has none, which whoever connects will say.
func user(dsn string) string {
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

// registerSinks makes the sinks known. What was in the outbox before them is owed to those of a first start.
func registerSinks(ctx context.Context, cfg config.Config, setup provision.SetupConfig, fromStart bool) error {
	var processors []provision.Processor
	sinks, err := buildSinks(cfg, Parts{})
	if err != nil {
		return err
	}
	for _, s := range sinks {
		processors = append(processors, provision.Processor{Name: s.Name, Type: s.Type, Configuration: s.Description, RenamedFrom: s.RenamedFrom, FromStart: fromStart})
	}
	return provision.WithConn(ctx, setup.DSN, setup.Source, func(conn *pgx.Conn) error {
		_, err := provision.RegisterProcessors(ctx, conn, setup.Source, cfg.Name, processors)
		return err
	})
}

// migrationError gives a refusal of the migrations its exit code: trying again cannot mend it.
func migrationError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "42P07": // tables of the same names, which are not ours
		return exitcode.With(exitcode.Config, err)
	case "42501":
		return exitcode.Errorf(exitcode.Privilege, "%w; give an owner's login by --dsn or OUTBOX_ADMIN_URL, or let an administrator run what --print-sql prints", err)
	}
	return err
}

// initialize is Init before a run, which tries again by itself where PostgreSQL is away.
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
		"slot_created", result.SlotCreated)
	return nil
}

func blockerText(blockers []provision.Blocker) string {
	var texts []string
	for _, b := range blockers {
		texts = append(texts, b.String())
	}
	return strings.Join(texts, ", ")
}
