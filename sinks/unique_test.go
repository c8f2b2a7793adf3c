package sinks_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestUniqueID(t *testing.T) {
	t.Parallel()
	orders := sinks.Origin("shop", "public", "orders_outbox")
	for _, c := range []struct{ name, origin, id, want string }{
		{"a number", orders, "101", "shop:public:orders_outbox:101"},
		{"a uuid", orders, "0199a3c2-5b1e-7c3d-8f00-0123456789ab", "0199a3c2-5b1e-7c3d-8f00-0123456789ab"},
		{"a uuid in capitals, of a text column", orders, "0199A3C2-5B1E-7C3D-8F00-0123456789AB", "0199A3C2-5B1E-7C3D-8F00-0123456789AB"},
		{"nearly a uuid", orders, "0199a3c2-5b1e-7c3d-8f00-0123456789ag", "shop:public:orders_outbox:0199a3c2-5b1e-7c3d-8f00-0123456789ag"},
		{"no table", "", "101", "101"},
		{"a text", orders, "order:7 v1.2%", "shop:public:orders_outbox:order:7 v1%2E2%25"},
		{"spaces around", orders, " x ", "shop:public:orders_outbox:%20x%20"},
		{"names with colons and dots", sinks.Origin("a:b", "c.d", "é"), "1", "a%3Ab:c%2Ed:%C3%A9:1"},
	} {
		m := sinks.Message{Event: &outbox.Event{ID: c.id}, Origin: c.origin}
		if got := m.UniqueID(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

var uniqueID = regexp.MustCompile(`^[!-~]([ -~]*[!-~])?$`)

// FuzzUniqueID: if two events differ in table or id, their UniqueIDs differ, and headers keep them unchanged.
func FuzzUniqueID(f *testing.F) {
	f.Add("shop", "public", "orders", "101", "shop", "public", "invoices", "101")
	f.Add("a:b", "c", "d", "1", "a", "b:c", "d", "1")
	f.Add("a", "b", "c", "d:1", "a", "b", "c:d", "1")
	f.Add("a", "b", "c", " %20.", "a", "b", "c", "%20 .")
	f.Fuzz(func(t *testing.T, db1, schema1, table1, id1, db2, schema2, table2, id2 string) {
		if id1 == "" || id2 == "" {
			return
		}
		a := sinks.Message{Event: &outbox.Event{ID: id1}, Origin: sinks.Origin(db1, schema1, table1)}
		b := sinks.Message{Event: &outbox.Event{ID: id2}, Origin: sinks.Origin(db2, schema2, table2)}
		x, y := a.UniqueID(), b.UniqueID()
		same := id1 == id2 && (x == id1 || db1 == db2 && schema1 == schema2 && table1 == table2)
		if x == y && !same {
			t.Errorf("%q of %q and %q of %q are both %q", id1, a.Origin, id2, b.Origin, x)
		}
		for _, id := range []string{x, y} {
			if !uniqueID.MatchString(id) || strings.Contains(id, ".") {
				t.Errorf("%q does not fit into a header", id)
			}
		}
	})
}
