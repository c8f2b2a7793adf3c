package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// A statement, hence a round trip, takes a thousand events or what reaches a MiB.
func TestStatements(t *testing.T) {
	t.Parallel()
	sized := func(payloads ...int) []Event {
		events := slices.Repeat([]Event{valid()}, len(payloads))
		for i, n := range payloads {
			if n > 0 {
				events[i].Payload = bytes.Repeat([]byte("1"), n)
			}
		}
		return events
	}
	for _, test := range []struct {
		name   string
		events []Event
		want   string // events of each statement
	}{
		{"none", nil, "[]"},
		{"one", sized(0), "[1]"},
		{"a thousand", slices.Repeat(sized(0), 1000), "[1000]"},
		{"one more", slices.Repeat(sized(0), 1001), "[1000 1]"},
		{"two thousand", slices.Repeat(sized(0), 2000), "[1000 1000]"},
		{"large", sized(0, 1<<20, 1<<20, 0, 0), "[2 1 2]"},
		{"together large", sized(1<<19, 1<<19, 1<<19), "[2 1]"},
		{"invalid at the end", append(slices.Repeat(sized(0), 1001), Event{}), "[]"},
	} {
		got := []int{}
		_ = writeEvents(t.Context(), test.events, func(_ string, args []any) error {
			got = append(got, strings.Count(args[0].(string), ",")+1) // of ids
			return nil
		})
		if fmt.Sprint(got) != test.want {
			t.Errorf("%s: got %v, want %s", test.name, got, test.want)
		}
	}
}

func TestNothingIsSentAfterAnError(t *testing.T) {
	t.Parallel()
	broken, calls := errors.New("broken"), 0
	err := writeEvents(t.Context(), slices.Repeat([]Event{valid()}, 2500), func(string, []any) error { calls++; return broken })
	if !errors.Is(err, broken) || err.Error() != "insert events: broken" || calls != 1 {
		t.Errorf("%d calls: %v", calls, err)
	}
}

// The order by of the statement is for certainty, and must not cost a sort.
func TestRowsAreNotSorted(t *testing.T) {
	t.Parallel()
	explained, err := pgtest.New(t).Conn(t).Query(t.Context(), "explain "+insertRows, args([]Event{valid()})...)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := pgx.CollectRows(explained, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(plan, "\n"); !strings.Contains(s, "Function Scan") || strings.Contains(s, "Sort") {
		t.Errorf("the plan is\n%s", s)
	}
}

func TestArray(t *testing.T) {
	t.Parallel()
	var a array
	for _, s := range []string{`{"a\\b": "c"}`, "NULL", ", \n}", "", `\`} {
		a.add(s)
	}
	want := `{"{\"a\\\\b\": \"c\"}","NULL",", ` + "\n" + `}",NULL,"\\"}`
	if got := a.literal(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
