package provision

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// For each encoding, the test asks the server about each single byte whether it can be converted to UTF8. UTF8 itself is left out:
// the server checks it when it is written.
func TestWholeEncodings(t *testing.T) {
	t.Parallel()
	conn := pgtest.Unmigrated(t).Conn(t)
	_, err := conn.Exec(t.Context(), `create function converts(byte int, encoding text) returns bool language plpgsql as $$
		begin perform convert_from(set_byte('\x00', 0, byte), encoding); return true; exception when others then return false; end $$`)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), `select name from generate_series(0, 34) n, pg_encoding_to_char(n) name
		where (select bool_and(converts(byte, name)) from generate_series(128, 255) byte)`)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	whole = append(whole, "UTF8")
	for _, name := range wholeEncodings {
		if !slices.Contains(whole, name) {
			t.Errorf("%s has bytes that cannot be converted", name)
		}
	}
	for _, name := range whole {
		if !slices.Contains(wholeEncodings, name) {
			t.Errorf("%s needs no warning", name)
		}
	}
}
