package admin

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// Cursors tell the next page of a list where the page before it ended. Lists of parked rows go by their key, the other lists
// by time and id.

// keyCursor writes the key of the last row of a page as --after takes it.
func keyCursor(k checkpoint.Key) string {
	return fmt.Sprintf("%d,%s,%d", k.Processor, k.Position.LSN, k.Position.Index)
}

// parseKeyCursor reads what keyCursor wrote. The empty text is the zero key, which stands for the beginning.
func parseKeyCursor(s string) (k checkpoint.Key, err error) {
	if s == "" {
		return k, nil
	}
	parts := strings.Split(s, ",")
	if len(parts) == 3 {
		var id int64
		id, err = strconv.ParseInt(parts[0], 10, 32)
		k.Processor = int32(id)
		if err == nil {
			k.Position.LSN, err = pglogrepl.ParseLSN(parts[1])
		}
		if err == nil {
			k.Position.Index, err = strconv.ParseInt(parts[2], 10, 64)
		}
	}
	if len(parts) != 3 || err != nil {
		return k, badCursor(s, "1,16/B374D848,0")
	}
	return k, nil
}

// timeCursor writes time and id of the last row of a page as --after takes them.
func timeCursor(t time.Time, id string) string { return t.UTC().Format(time.RFC3339Nano) + "," + id }

// parseTimeCursor reads what timeCursor wrote. The empty text is the zero time, which stands for the beginning.
func parseTimeCursor(s, example string, isID func(string) bool) (t time.Time, id string, err error) {
	if s == "" {
		return t, "0", nil
	}
	text, id, _ := strings.Cut(s, ",")
	if t, err = time.Parse(time.RFC3339Nano, text); err != nil || t.IsZero() || !isID(id) {
		return t, "", badCursor(s, "2026-01-31T12:00:00.5Z,"+example)
	}
	return t, id, nil
}

func badCursor(s, example string) error {
	return fmt.Errorf("--after %q is not where such a list has ended, as %s is; copy what it says there, with the same filters", s, example)
}
