package pgtest_test

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// What is planted is what PostgreSQL takes where the schema is on the search_path, and with pg_catalog alone it takes none.
func TestPlantedIsCaught(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	planted := d.Plant(t, "public")
	conn := d.Conn(t)
	statements := []string{
		"select 7::bigint % 2",
		"select 7 * interval '1 day'",
		"select format('%s %s', 'a', current_user)",
		"select max(7::smallint), min('a'::name)",
		"select from (values ('a'::varchar)) v (x) where x = current_user",
		"select pg_wal_lsn_diff('0/1', '0/0'::text)",
		"select concat(7, 'a')",
	}
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), "set search_path = pg_catalog, pg_temp; "+strings.ReplaceAll(sql, "'0/0'::text", "'0/0'")); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	planted.CheckNothingCaught(t)
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), "set search_path = public; "+sql); err == nil || !strings.Contains(err.Error(), "CAUGHT") {
			t.Errorf("%s: %v", sql, err)
		}
	}
}
