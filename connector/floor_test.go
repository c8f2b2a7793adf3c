package connector

import (
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// No untried row is ever at or before the floor, in whatever order rows are parked, committed, read and tried. And the floor does rise.
func TestFloor(t *testing.T) {
	t.Parallel()
	type row struct {
		at  checkpoint.Position
		seq uint64
	}
	r := testrand.New(t)
	rose := false
	for range 2000 {
		f := newFloor()
		var rows []row // untried
		var given, committed uint64
		snapshot, reading := checkpoint.MinPosition, false
		for step := range 40 {
			switch r.IntN(6) {
			case 0, 1:
				at := checkpoint.Position{LSN: pglogrepl.LSN(1 + step/2 + r.IntN(3)), Index: int64(step)}
				f.parked(at)
				rows = append(rows, row{at, given + 1})
			case 2:
				given++
				f.gave(given)
			case 3:
				committed += r.Uint64N(given - committed + 1)
				f.recorded(committed)
			case 4:
				if reading {
					f.readEnds(snapshot, checkpoint.Position{})
					rose = rose || f.at != checkpoint.MinPosition
				} else {
					f.readBegins()
					snapshot = checkpoint.MinPosition
					for _, x := range rows {
						if x.seq <= committed && x.at.Compare(f.at) > 0 && (snapshot == checkpoint.MinPosition || x.at.Compare(snapshot) < 0) {
							snapshot = x.at
						}
					}
				}
				reading = !reading
			case 5: // one is tried
				if n := len(rows); n > 0 && !reading {
					i := r.IntN(n)
					f.read(rows[i].at)
					rows = append(rows[:i], rows[i+1:]...)
				}
			}
			for _, x := range rows {
				if x.at.Compare(f.at) <= 0 {
					t.Fatalf("%v is untried, but the floor is at %v", x.at, f.at)
				}
			}
		}
	}
	if !rose {
		t.Error("the floor never rose")
	}
}
