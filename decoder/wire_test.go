package decoder

import (
	"encoding/binary"

	"github.com/jackc/pgx/v5/pgtype"
)

// The functions of this file write messages as PostgreSQL does.

const testOID = 16999

// defaultRelation is event_outbox.
var defaultRelation = []column{
	{"id", pgtype.UUIDOID},
	{"aggregate_type", pgtype.TextOID},
	{"aggregate_id", pgtype.TextOID},
	{"event_type", pgtype.TextOID},
	{"event_version", pgtype.Int4OID},
	{"payload", pgtype.JSONOID},
	{"metadata", pgtype.JSONBOID},
	{"created_at", pgtype.TimestamptzOID},
	{"max_retries", pgtype.Int4OID},
	{"tenant_id", pgtype.TextOID},
	{"correlation_id", pgtype.TextOID},
	{"causation_id", pgtype.TextOID},
}

func relationMessage(oid uint32, columns ...column) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'R'}, oid)
	b = append(b, "public\x00event_outbox\x00d"...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(columns)))
	for _, c := range columns {
		b = append(append(append(b, 0), c.name...), 0)
		b = binary.BigEndian.AppendUint32(b, c.oid)
		b = binary.BigEndian.AppendUint32(b, 0xffffffff)
	}
	return b
}

// null stands for NULL in insertMessage.
const null = "\x00null"

func insertMessage(oid uint32, values ...string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'I'}, oid)
	b = append(b, 'N')
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		if v == null {
			b = append(b, 'n')
			continue
		}
		b = binary.BigEndian.AppendUint32(append(b, 't'), uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

func beginMessage(lsn uint64, micros int64, xid uint32) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'B'}, lsn)
	b = binary.BigEndian.AppendUint64(b, uint64(micros))
	return binary.BigEndian.AppendUint32(b, xid)
}

func commitMessage(lsn, end uint64, micros int64) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'C', 0}, lsn)
	b = binary.BigEndian.AppendUint64(b, end)
	return binary.BigEndian.AppendUint64(b, uint64(micros))
}
