package decoder

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"
)

// TypeNames holds the names of types that are not built in, by OID.
type TypeNames map[uint32]string

// typeMessage notes the name of a type. The server announces a type that is not built in before the relation that uses
// it. For a domain it sends the domain's OID with the name of its base type, and it leaves out the schema where that is
// pg_catalog.
func (d *Decoder) typeMessage(body []byte) (Message, error) {
	r := reader{rest: body}
	oid := r.uint32()
	schema, name := r.string(), r.string()
	if err := r.end(); err != nil {
		return Message{}, err
	}
	if schema == "" {
		d.types[oid] = "domain over " + name
	} else {
		d.types[oid] = schema + "." + name
	}
	return Message{Kind: KindIgnored}, nil
}

// name returns the type's name as a message for people shows it.
func (t TypeNames) name(oid uint32) string {
	if name, ok := t[oid]; ok {
		return name
	}
	if t, ok := pgtype.NewMap().TypeForOID(oid); ok {
		return t.Name
	}
	return fmt.Sprintf("with OID %d", oid)
}

// describeTypes lists built-in types for an error message.
func describeTypes(oids []uint32) string {
	names := make([]string, len(oids))
	for i, oid := range oids {
		names[i] = TypeNames(nil).name(oid)
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}
