package kafka

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The layout of a record batch: https://kafka.apache.org/documentation/#recordbatch.
const (
	batchHeader     = 61
	batchLengthFrom = 8 + 4 // the length counts the bytes that follow it
	batchCRCAt      = 17
	batchCRCFrom    = batchCRCAt + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encoder turns waves into bytes. It uses its buffers again for each wave.
type encoder struct {
	compressor kgo.Compressor // nil for no compression
	wave       []byte
	plain      []byte // one batch before it is compressed
	packed     bytes.Buffer
}

// keptBytes is the largest buffer that a lane keeps from one Deliver to the next. Batches of 500 small events need less.
const keptBytes = 2 << 20

// encode makes the batch of each partition of the wave. All batches share one buffer, which the next call overwrites.
func (e *encoder) encode(wave []*partition, records []record, id int64, epoch int16) {
	size := 0
	for _, p := range wave {
		size += batchHeader + p.size
	}
	if cap(e.wave) < size {
		e.wave = make([]byte, 0, size)
	}
	e.wave = e.wave[:0] // never grows here: a compressed batch is used only if it is smaller
	for _, p := range wave {
		from := len(e.wave)
		e.wave = e.appendBatch(e.wave, p, records, id, epoch)
		p.batch = e.wave[from:len(e.wave):len(e.wave)]
	}
}

func (e *encoder) appendBatch(dst []byte, p *partition, records []record, id int64, epoch int16) []byte {
	from := len(dst)
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1,
		Magic:                2,
		LastOffsetDelta:      p.count - 1,
		FirstTimestamp:       p.baseTimestamp,
		MaxTimestamp:         p.maxTimestamp,
		ProducerID:           id,
		ProducerEpoch:        epoch,
		FirstSequence:        p.sequence,
		NumRecords:           p.count,
	}
	dst = b.AppendTo(dst)
	if e.compressor == nil {
		dst = p.appendRecords(dst, records)
	} else {
		e.plain = p.appendRecords(e.plain[:0], records)
		e.packed.Reset()
		if packed, codec := e.compressor.Compress(&e.packed, e.plain); codec > 0 && len(packed) < len(e.plain) {
			dst[from+batchCRCFrom+1] |= byte(codec) // the codec is in the low bits of the attributes
			dst = append(dst, packed...)
		} else {
			dst = append(dst, e.plain...)
		}
	}
	batch := dst[from:]
	binary.BigEndian.PutUint32(batch[8:], uint32(len(batch)-batchLengthFrom))
	binary.BigEndian.PutUint32(batch[batchCRCAt:], crc32.Checksum(batch[batchCRCFrom:], castagnoli))
	return dst
}

func (p *partition) appendRecords(dst []byte, records []record) []byte {
	for i := p.first; i >= 0; i = records[i].next {
		dst = records[i].append(dst, p.baseTimestamp)
	}
	return dst
}

// shrink frees buffers that a large wave has made larger than keptBytes.
func (e *encoder) shrink() {
	if cap(e.wave) > keptBytes {
		e.wave = nil
	}
	if cap(e.plain) > keptBytes {
		e.plain = nil
	}
	if e.packed.Cap() > keptBytes {
		e.packed = bytes.Buffer{}
	}
}
