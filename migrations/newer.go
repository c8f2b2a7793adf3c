package migrations

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// CheckNewer refuses a ledger to which a later version of outbox-cdc has applied files that this one does not have. It has no opinion if
// there is no ledger, or if the login may not read which files were applied.
func CheckNewer(ctx context.Context, db ledger.Querier, schema string) error {
	found, err := findTable(ctx, db, schema)
	if err != nil || !found.readable {
		return err
	}
	applied, err := readApplied(ctx, db, schema)
	if err != nil {
		return err
	}
	return found.checkNewer(schema, applied)
}

// appliedFile is a row of outbox_migrations.
type appliedFile struct {
	number int64
	at     *time.Time // null if somebody has written the row by hand
}

// migrationsTable is what the catalog says of outbox_migrations.
type migrationsTable struct {
	// ours is false if there is none, or if it belongs to somebody who is not trusted: it could be a view that runs code of his.
	ours bool
	// readable means that a connector may read it. It also may if the owner is not trusted, but was given the right to create tables there by
	// name: see provision.CheckOwners.
	readable bool
	comment  string
}

func findTable(ctx context.Context, db ledger.Querier, schema string) (t migrationsTable, err error) {
	err = db.QueryRow(ctx, ledger.TrustedRoles+`
		select ours, (ours or by_name) and has_schema_privilege(nsp, 'usage') and has_table_privilege(rel, 'select'), coalesce(obj_description(rel, 'pg_class'), '')
		from (select c.oid as rel, n.oid as nsp, relowner in (select oid from trusted) as ours,
				exists (select from aclexplode(nspacl) a where privilege_type = 'CREATE' and grantee <> 0 and pg_has_role(relowner, grantee, 'usage')) as by_name
			from pg_class c join pg_namespace n on n.oid = relnamespace
			where nspname = $1 and relname = 'outbox_migrations' and relkind = 'r') t`, schema).
		Scan(&t.ours, &t.readable, &t.comment)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return t, err
}

func readApplied(ctx context.Context, db ledger.Querier, schema string) ([]appliedFile, error) {
	rows, err := db.Query(ctx, "select version_id, tstamp from "+pgx.Identifier{schema, "outbox_migrations"}.Sanitize()+" order by version_id")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f appliedFile, err error) {
		return f, row.Scan(&f.number, &f.at)
	})
}

// checkNewer says which version has applied files that this one does not know, as far as the ledger tells.
func (t migrationsTable) checkNewer(schema string, applied []appliedFile) error {
	known, err := newest()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(applied, func(f appliedFile) bool { return f.number > known })
	if at < 0 {
		return nil
	}
	last := applied[len(applied)-1]
	wrote := "a later version"
	if version := versionOf(t.comment, last.number); version != "" {
		wrote = "version " + version
	}
	day := ""
	if last.at != nil {
		day = " on " + last.at.Format(time.DateOnly)
	}
	return &refusal{fmt.Sprintf("the ledger in schema %q is newer than this outbox-cdc: %s has applied migration %d%s, and this one knows those up to %d; "+
		"install that version or a later one, see docs/upgrades.md#downgrade", schema, wrote, last.number, day, known)}
}

// newest is the highest number of our files.
func newest() (highest int64, err error) {
	names, err := fs.Glob(migrationFiles, "*.sql")
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		n, err := numberOf(name)
		if err != nil {
			return 0, err
		}
		highest = max(highest, n)
	}
	return highest, nil
}

func numberOf(name string) (int64, error) {
	number, _, _ := strings.Cut(name, "_")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s has no number in front: %w", name, err)
	}
	return n, nil
}

// released is what the version of a release looks like. One that was built from a commit tells nobody what to install.
var released = regexp.MustCompile(`^v?\d+\.\d+\.\d+$`)

// signature is the comment on outbox_migrations that says which version has applied the files up to a number. An older version reads it.
func signature(version string, upTo int64) string {
	return fmt.Sprintf("outbox-cdc %s applied migrations up to %d", version, upTo)
}

// versionOf returns the version that has signed for the files up to a number, or "" if nobody has: psql -f signs for nothing.
func versionOf(comment string, upTo int64) string {
	words := strings.Fields(comment)
	if len(words) < 2 || !released.MatchString(words[1]) || comment != signature(words[1], upTo) {
		return ""
	}
	return words[1]
}

// sign returns the statement that writes the signature, or "" if this is no release.
func sign(schema, version string) (string, error) {
	if !released.MatchString(version) {
		return "", nil
	}
	upTo, err := newest()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("comment on table %s is '%s';\n", pgx.Identifier{schema, "outbox_migrations"}.Sanitize(), signature(version, upTo)), nil
}
