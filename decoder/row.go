package decoder

// Announce says which columns the outbox has, for rows that come from a query. The stream announces them by itself. Columns that an event
// does not need may be left out.
func (d *Decoder) Announce(names []string, types []uint32) error {
	columns := make([]column, len(names))
	for i, name := range names {
		columns[i] = column{name: name, oid: types[i]}
	}
	rel, err := d.table.Columns.find(columns, d.types)
	if err != nil {
		return err
	}
	d.outbox = rel
	return nil
}

// Row makes of a row that a query has returned what Decode would make of it, had the row come on the stream. texts has the values of the
// announced columns in text format, nil for NULL. They must have been written with the settings of the replication connection. leftOut is
// how many bytes the query has left out of a row that is larger than max_event_bytes, else 0. Row keeps nothing of texts.
func (d *Decoder) Row(texts [][]byte, leftOut int) (Message, error) {
	var v values
	for f, at := range d.outbox.column {
		if at >= 0 {
			v[f] = texts[at]
		}
	}
	return d.fromValues(&v, leftOut)
}

// Used returns the names of the columns that the outbox has, without repetition.
func (c *Columns) Used() []string {
	var names []string
	seen := map[string]bool{"": true}
	for _, name := range c.names() {
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}
