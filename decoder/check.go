package decoder

import (
	"cmp"
	"slices"
)

// Check says whether a table with columns of these types (OIDs by the column's name) has what an event needs. A relation
// on the stream is judged in the same way; Check does so before there is a stream. names are for the error's text.
func (c Columns) Check(types map[string]uint32, names TypeNames) error {
	columns := make([]column, 0, len(types))
	for name, oid := range types {
		columns = append(columns, column{name: name, oid: oid})
	}
	slices.SortFunc(columns, func(a, b column) int { return cmp.Compare(a.name, b.name) })
	_, err := c.find(columns, names)
	return err
}
