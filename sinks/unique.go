package sinks

import (
	"fmt"
	"strings"
)

// Origin is what Message.Origin is for the events of a table: its database, schema and name with colons between them. No two
// tables of a server have the same.
func Origin(database, schema, table string) string {
	name := func(s string) string { return strings.ReplaceAll(plainID(s), ":", "%3A") }
	return name(database) + ":" + name(schema) + ":" + name(table)
}

// UniqueID identifies the event to a destination that refuses what it has already: Nats-Msg-Id, webhook-id,
// Idempotency-Key. An id that is written as a uuid is unique by itself and stays as it is, whatever the type of its column:
// so the answer does not change when that type does. Any other one is unique within its table alone, so Origin stands in
// front of it, as in shop:public:orders_outbox:101. It is the same at each try and after each restart.
//
// Such an id consists of visible ASCII characters, and spaces between them. It has no dot, which Standard Webhooks forbid, and a
// percent sign only as part of %XX, which stands for a byte that is none of them.
func (m *Message) UniqueID() string {
	id := m.Event.ID
	switch {
	case isUUID(id):
		return id
	case m.Origin == "":
		return plainID(id)
	}
	return m.Origin + ":" + plainID(id)
}

// isUUID tells whether s is written as PostgreSQL writes a uuid; capitals are fine as well.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	return true
}

// plainID writes a byte as %XX that is no visible ASCII character, and a dot or a percent sign; a space only at either end,
// where headers do not keep it. Two texts that differ still do.
func plainID(s string) string {
	isPlain := func(i int) bool {
		switch c := s[i]; c {
		case ' ':
			return i > 0 && i < len(s)-1
		case '%', '.':
			return false
		default:
			return c > ' ' && c <= '~'
		}
	}
	i := 0
	for i < len(s) && isPlain(i) {
		i++
	}
	if i == len(s) {
		return s
	}
	var out strings.Builder
	out.WriteString(s[:i])
	for ; i < len(s); i++ {
		if isPlain(i) {
			out.WriteByte(s[i])
		} else {
			fmt.Fprintf(&out, "%%%02X", s[i])
		}
	}
	return out.String()
}
