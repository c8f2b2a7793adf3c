package kafka

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// TestRandomFaults puts lanes that try again in place through faults of every kind, and looks at what the topics hold:
// nothing lost, each aggregate in order, and no copy but where an outcome was unknown. That shows also that nothing
// behind a failure was accepted: it would be there twice.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, kfake.NumBrokers(3))
			w.sink.patience, w.sink.rest = 150*time.Millisecond, 100*time.Millisecond
			allowed := []error{kerr.UnknownServerError}
			if seed%2 == 1 {
				w.several()
				allowed = append(allowed, sinks.ErrTopicUnavailable)
			}
			topics := []string{w.topic, createTopic(t, w.brokers, 2, map[string]string{"max.message.bytes": "5000"})}
			over := make(chan struct{})
			w.topics = topics
			var world, lanes sync.WaitGroup
			world.Go(func() { w.harass(rand.New(rand.NewPCG(seed, 0)), over) })
			all := make([][]sinks.Message, 3)
			copies := make([]map[string]int, len(all))
			for lane := range all {
				r := rand.New(rand.NewPCG(seed, uint64(lane)+1))
				for i := range 400 {
					aggregate := fmt.Sprintf("lane %d, %d", lane, r.IntN(12))
					all[lane] = append(all[lane], message(topics[r.IntN(2)], aggregate, fmt.Sprintf("%d-%d", lane, i), r.IntN(600)))
				}
				lanes.Go(func() { copies[lane] = sinktest.RandomLane(t, w.sink, r, all[lane], allowed...) })
			}
			lanes.Wait()
			close(over)
			world.Wait()

			arrived := slices.Concat(ids(consume(t, w.brokers, topics[0])), ids(consume(t, w.brokers, topics[1])))
			sinktest.CheckLanes(t, all, copies, arrived)
		})
	}
}

// harass does something nasty to the cluster again and again.
func (w *world) harass(r *rand.Rand, over chan struct{}) {
	errs := []*kerr.Error{
		kerr.NotLeaderForPartition, kerr.LeaderNotAvailable, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend,
		kerr.RequestTimedOut, kerr.UnknownTopicOrPartition, kerr.UnknownProducerID, kerr.OutOfOrderSequenceNumber,
		kerr.InvalidProducerEpoch, kerr.MessageTooLarge, kerr.TopicAuthorizationFailed, kerr.UnknownServerError,
		kerr.KafkaStorageError,
	}
	for {
		select {
		case <-over:
			return
		case <-time.After(time.Duration(r.IntN(15)) * time.Millisecond):
		}
		// The times for which a place is left alone are longer than this test.
		w.sink.answered(place{w.topics[r.IntN(2)], r.Int32N(4) - 1})
		switch r.IntN(8) {
		case 0:
			w.fake.ShufflePartitionLeaders()
		case 1:
			w.network.goAway()()
		case 2:
			back := w.network.hang()
			time.AfterFunc(time.Duration(r.IntN(100))*time.Millisecond, back)
			<-time.After(110 * time.Millisecond)
		default:
			err := errs[r.IntN(len(errs))]
			f := kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: err, Count: 1 + r.IntN(3), Partitions: []int32{r.Int32N(3)}}
			if err == kerr.MessageTooLarge { // a lie about one record would be believed
				f.When = func(req kmsg.Request) bool {
					for _, t := range req.(*kmsg.ProduceRequest).Topics {
						for _, p := range t.Partitions {
							if strings.Count(string(p.Records), "OrderChanged") < 2 {
								return false
							}
						}
					}
					return true
				}
			}
			h := w.fake.Fault(f)
			time.AfterFunc(30*time.Millisecond, h.Remove)
		}
	}
}
