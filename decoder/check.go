package decoder

import (
	"cmp"
	"slices"
)

// Check says whether a table with columns of these types (OIDs by name) has what an event needs. It is the judgement
// that a relation on the stream meets, for asking it before there is a stream.
func (c Columns) Check(types map[string]uint32) error {
	columns := make([]column, 0, len(types))
	for name, oid := range types {
		columns = append(columns, column{name: name, oid: oid})
	}
	slices.SortFunc(columns, func(a, b column) int { return cmp.Compare(a.name, b.name) })
	_, err := c.find(columns)
	return err
}
