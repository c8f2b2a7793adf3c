package provision

import (
	"testing"
)

// On a server with another history rows of before get positions before its own. Where a job was unfinished, what the old stream had brought since
// then still waits for what the new job finds, however often that happens. All of it stands before what the new slot sends.
func TestResyncParkedBehindAJob(t *testing.T) {
	t.Parallel()
	o := newLost(t)
	o.exec("update outbox_checkpoints set system_identifier = 7, prefix_lsn = '7F/20', prefix_index = 0",
		`insert into outbox_backlog (processor_id, mode, reason, base_lsn, base_index, start_lsn, filter, status) values
			(1, 'missing', 'resync', '0/10', 5, '7F/10', '{}', 'running'), (2, 'missing', 'resync', '0/10', 5, '7F/18', '{}', 'done')`,
		`insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event, error_message) values
			(1, '7F/08', 0, 1, 'parked', '{}', 'early'), (1, '7F/10', -7, 1, 'parked', '{}', 'found'), (1, '7F/18', 3, 1, 'parked', '{}', 'late'),
			(1, '7F/30', 0, 1, 'parked', '{}', 'later'), (2, '7F/18', 3, 1, 'parked', '{}', 'other')`)
	o.cfg.Parked = ParkedKeep
	is := func(want string) {
		t.Helper()
		got := o.text(`select string_agg(concat(p.processor_id, ' ', p.error_message, case when (p.commit_lsn, p.tx_index) >= (j.start_lsn, 0) then ' behind' end,
				case when p.tx_index >= 0 then ' streamed' end, case when p.commit_lsn >= s.confirmed_flush_lsn then ' AHEAD' end), ', ' order by p.processor_id, p.commit_lsn, p.tx_index)
			from outbox_parked p join outbox_backlog j on j.processor_id = p.processor_id and j.status <> 'done', pg_replication_slots s where slot_name = $1`, o.cfg.Slot)
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	o.resync()
	is("1 early streamed, 1 found, 1 late behind streamed, 1 later behind, 2 other streamed")

	// Both jobs are unfinished now, and the slot of the new server has brought something.
	o.exec("update outbox_checkpoints set system_identifier = 8, prefix_lsn = '8F/00', prefix_index = 0",
		`insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event, error_message) values
			(1, '8F/01', 0, 1, 'parked', '{}', 'new'), (2, '8F/01', 0, 1, 'parked', '{}', 'new')`)
	o.resync()
	is("1 early streamed, 1 found, 1 late behind streamed, 1 later behind, 1 new behind, 2 other streamed, 2 new behind")
}
