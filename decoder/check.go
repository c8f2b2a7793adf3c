package decoder

import (
	"cmp"
	"slices"
)

// Check returns an error if a table with columns of these types (OIDs by the column's name) lacks something that an
// event needs. The decoder checks the relations on the stream in the same way. Check is for the time before there is a
// stream. names are for the text of the error.
func (c Columns) Check(types map[string]uint32, names TypeNames) error {
	columns := make([]column, 0, len(types))
	for name, oid := range types {
		columns = append(columns, column{name: name, oid: oid})
	}
	slices.SortFunc(columns, func(a, b column) int { return cmp.Compare(a.name, b.name) })
	_, err := c.find(columns, names)
	return err
}
