package decoder

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

var update = flag.Bool("update", false, "write the golden files anew")

// mappedColumns are the columns of the table "legacy.events" of the recordings.
var mappedColumns = Columns{
	ID: "seq", AggregateType: "kind", AggregateID: "ref", EventType: "type", EventVersion: "version",
	Payload: "body", Metadata: "notes", CreatedAt: "at",
}

// recording is what a real server sent: see TestRecord.
type recording struct {
	name           string // such as pg15
	version        string
	outbox, mapped uint32 // OIDs
	messages       [][]byte
	comments       map[int]string // what was done, by the index of the message that it led to
}

func recordings(t testing.TB) []*recording {
	t.Helper()
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	var all []*recording
	for _, file := range files {
		r, err := readRecording(file)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, r)
	}
	return all
}

func readRecording(file string) (*recording, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &recording{name: strings.TrimSuffix(filepath.Base(file), ".hex"), comments: map[int]string{}}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if header, ok := strings.CutPrefix(line, "#: "); ok {
			if _, err := fmt.Sscanf(header, headerFormat, &r.version, &r.outbox, &r.mapped); err != nil {
				return nil, err
			}
			continue
		}
		if comment, ok := strings.CutPrefix(line, "# "); ok {
			r.comments[len(r.messages)] = comment
			continue
		}
		message, err := hex.DecodeString(line)
		if err != nil {
			return nil, err
		}
		r.messages = append(r.messages, message)
	}
	return r, lines.Err()
}

const headerFormat = "PostgreSQL %s event_outbox %d legacy.events %d"

func (r *recording) write(file string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "#: "+headerFormat+"\n", r.version, r.outbox, r.mapped)
	for i, m := range r.messages {
		if comment, ok := r.comments[i]; ok {
			fmt.Fprintf(&b, "# %s\n", comment)
		}
		fmt.Fprintf(&b, "%x\n", m)
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// TestGolden decodes each recording twice: as the stream of event_outbox and as that of a mapped table.
func TestGolden(t *testing.T) {
	t.Parallel()
	for _, r := range recordings(t) {
		for suffix, table := range map[string]Table{
			"":        {OID: r.outbox, Columns: DefaultColumns()},
			"-mapped": {OID: r.mapped, Columns: mappedColumns},
		} {
			got := golden(r, table)
			file := filepath.Join("testdata", r.name+suffix+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
				t.Errorf("%s: -want +got:\n%s", file, diff)
			}
		}
	}
}

// golden returns one line of JSON for each message.
func golden(r *recording, table Table) []byte {
	kinds := map[Kind]string{KindIgnored: "ignored", KindBegin: "begin", KindCommit: "commit", KindInsert: "insert", KindRelation: "relation"}
	type event struct {
		ID, AggregateType, AggregateID, EventType string
		EventVersion                              int
		ContentType                               string  `json:",omitempty"`
		Payload, Metadata                         *string `json:",omitempty"`
		CreatedAt                                 string
		MaxRetries                                *int   `json:",omitempty"`
		TenantID, CorrelationID, CausationID      string `json:",omitempty"`
	}
	type line struct {
		Done         string `json:",omitempty"`
		Message      string
		Kind         string
		LSN          string `json:",omitempty"`
		EndLSN       string `json:",omitempty"`
		CommitTime   string `json:",omitempty"`
		Xid          uint32 `json:",omitempty"`
		Event        *event `json:",omitempty"`
		Size         int    `json:",omitempty"`
		Invalid, Err string `json:",omitempty"`
	}
	text := func(b []byte) *string {
		if b == nil {
			return nil
		}
		if !utf8.Valid(b) {
			return new(fmt.Sprintf("%q", b))
		}
		return new(string(b))
	}
	d := New(table, 1<<20)
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	for i, message := range r.messages {
		m, err := d.Decode(message)
		l := line{Done: r.comments[i], Message: string(message[:1]), Kind: kinds[m.Kind], Xid: m.Xid, Size: m.Size}
		if m.LSN > 0 {
			l.LSN, l.CommitTime = m.LSN.String(), m.CommitTime.Format(time.RFC3339Nano)
		}
		if m.EndLSN > 0 {
			l.EndLSN = m.EndLSN.String()
		}
		if e := m.Event; e != nil {
			l.Event = &event{
				e.ID, e.AggregateType, e.AggregateID, e.EventType, e.EventVersion, e.ContentType, text(e.Payload), text(e.Metadata),
				e.CreatedAt.Format("2006-01-02T15:04:05.999999999Z07:00"), e.MaxRetries, e.TenantID, e.CorrelationID, e.CausationID,
			}
		}
		if m.Invalid != nil {
			l.Invalid = m.Invalid.Error()
		}
		if err != nil {
			l.Kind, l.Err = "", err.Error()
		}
		if err := encoder.Encode(l); err != nil {
			panic(err)
		}
	}
	return out.Bytes()
}

// TestSecondOpinion compares messages with what pglogrepl decodes, and values with what pgx decodes.
func TestSecondOpinion(t *testing.T) {
	t.Parallel()
	for _, r := range recordings(t) {
		for _, table := range []Table{{OID: r.outbox, Columns: DefaultColumns()}, {OID: r.mapped, Columns: mappedColumns}} {
			inserts := 0
			d := New(table, 1<<20)
			relations := map[uint32]*pglogrepl.RelationMessage{}
			for i, message := range r.messages {
				opinion, err := pglogrepl.Parse(message)
				if err != nil {
					t.Fatalf("%s, message %d: pglogrepl: %v", r.name, i, err)
				}
				if relation, ok := opinion.(*pglogrepl.RelationMessage); ok {
					relations[relation.RelationID] = relation
				}
				got, err := d.Decode(message)
				if err != nil {
					continue // drift, which pglogrepl knows nothing of
				}
				want := Message{Kind: got.Kind}
				switch o := opinion.(type) {
				case *pglogrepl.BeginMessage:
					want = Message{Kind: KindBegin, LSN: o.FinalLSN, CommitTime: o.CommitTime.UTC(), Xid: o.Xid}
				case *pglogrepl.CommitMessage:
					want = Message{Kind: KindCommit, LSN: o.CommitLSN, EndLSN: o.TransactionEndLSN, CommitTime: o.CommitTime.UTC()}
				case *pglogrepl.RelationMessage:
					want.Kind = KindRelation
				case *pglogrepl.InsertMessage:
					want.Kind = KindInsert
					if o.RelationID == table.OID {
						want.Event = eventOf(t, relations[o.RelationID], o.Tuple, table.Columns.names())
						inserts++
					} else {
						want.Relation = o.RelationID
					}
				default:
					want.Kind = KindIgnored
				}
				got.Size, got.Invalid = 0, nil
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s, message %d: -pglogrepl +ours:\n%s", r.name, i, diff)
				}
			}
			if inserts == 0 {
				t.Errorf("%s: no insert into relation %d", r.name, table.OID)
			}
		}
	}
}

func eventOf(t testing.TB, relation *pglogrepl.RelationMessage, row *pglogrepl.TupleData, names [fieldCount]string) *outbox.Event {
	t.Helper()
	pg := pgtype.NewMap()
	var texts [fieldCount]string
	e := &outbox.Event{}
	for i, c := range relation.Columns {
		if c.Name == names[payload] {
			e.ContentType = contentTypes[c.DataType]
		}
		for f, name := range names {
			if name != c.Name || row.Columns[i].DataType == 'n' {
				continue
			}
			data := row.Columns[i].Data
			texts[f] = string(data)
			var err error
			switch field(f) {
			case payload:
				e.Payload = data
				if c.DataType == pgtype.ByteaOID {
					err = pg.Scan(c.DataType, pgtype.TextFormatCode, data, &e.Payload)
				}
			case metadata:
				e.Metadata = data
			case eventVersion:
				err = pg.Scan(c.DataType, pgtype.TextFormatCode, data, &e.EventVersion)
			case maxRetries:
				err = pg.Scan(c.DataType, pgtype.TextFormatCode, data, &e.MaxRetries)
			case createdAt:
				var at pgtype.Timestamptz
				var local pgtype.Timestamp
				if c.DataType == pgtype.TimestampOID {
					err = pg.Scan(c.DataType, pgtype.TextFormatCode, data, &local)
					at = pgtype.Timestamptz(local)
				} else {
					err = pg.Scan(c.DataType, pgtype.TextFormatCode, data, &at)
				}
				if at.InfinityModifier == pgtype.Finite {
					e.CreatedAt = at.Time.UTC()
				}
			}
			if err != nil {
				t.Fatalf("column %s, %q: pgx: %v", c.Name, data, err)
			}
		}
	}
	e.ID, e.AggregateType, e.AggregateID, e.EventType = texts[id], texts[aggregateType], texts[aggregateID], texts[eventType]
	e.TenantID, e.CorrelationID, e.CausationID = texts[tenantID], texts[correlationID], texts[causationID]
	return e
}
