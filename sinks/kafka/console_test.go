//go:build !containers

package kafka

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// consolePartitions: keys land where Kafka's own producer puts them, so that an aggregate's events stay in order when
// another connector hands over to this one.
func consolePartitions(t *testing.T, broker *servers.Kafka) {
	const partitions = 7
	keys := []string{
		"", " ", "0", "a", "order-1", "outbox.event.Order", "é", "Bestellung № 1", "👩‍👩‍👧‍👦", "日本語", "\u0001", "\u007f", "\u2028", "{\"json\":1}",
		"0190f5a0-0000-7000-8000-000000000001", strings.Repeat("long", 5000), strings.Repeat("é", 4999) + "x",
	}
	for i := range 200 {
		keys = append(keys, fmt.Sprint("order-", i), strings.Repeat("ü€x", i%5)+strconv.Itoa(i*i))
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)

	java, ours := createTopic(t, broker.Brokers(), partitions, nil), createTopic(t, broker.Brokers(), partitions, nil)
	produceByConsole(t, broker, java, keys)
	s, _ := newSink(t, Config{Brokers: broker.Brokers()})
	var batch []sinks.Message
	for i, key := range keys {
		batch = append(batch, sinks.Message{
			Event: &outbox.Event{ID: fmt.Sprint(i), AggregateType: "Order", AggregateID: key, Payload: []byte("v")}, Topic: ours, Key: key,
		})
	}
	if errs := s.Deliver(t.Context(), batch); errs != nil {
		t.Fatal(errs)
	}
	want, got := make(map[string]int32), make(map[string]int32)
	used := make(map[int32]bool)
	for _, r := range consume(t, broker.Brokers(), java) {
		if r.Key == nil {
			t.Error("the console producer sent no key")
		}
		want[string(r.Key)] = r.Partition
		used[r.Partition] = true
	}
	for _, r := range consume(t, broker.Brokers(), ours) { // an empty key goes without, and by the aggregate's id
		got[string(r.Key)] = r.Partition
	}
	if len(want) != len(keys) || len(got) != len(keys) || len(used) != partitions {
		t.Fatalf("of %d keys, the console producer sent %d to %d partitions, and we %d", len(keys), len(want), len(used), len(got))
	}
	for _, key := range keys {
		if got[key] != want[key] {
			t.Errorf("key %.40q: Java's producer puts it into partition %d, we into %d", key, want[key], got[key])
		}
	}
}

// produceByConsole sends keys by the console producer that is among the broker's jars.
func produceByConsole(t *testing.T, broker *servers.Kafka, topic string, keys []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var lines bytes.Buffer
	for _, key := range keys {
		fmt.Fprintf(&lines, "%s\tv\n", key)
	}
	java := javaTool(ctx, t, broker, "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", broker.Brokers()[0], "--topic", topic,
		"--reader-property", "parse.key=true", "--reader-property", "key.separator=\t")
	java.Stdin = &lines
	if out, err := java.CombinedOutput(); err != nil {
		t.Fatalf("console producer: %v\n%s", err, out)
	}
}

// remedyOfCheck: the command that a check names makes the topic.
func remedyOfCheck(t *testing.T, broker *servers.Kafka) {
	s, _ := newSink(t, Config{Brokers: broker.Brokers()})
	topic := newTopicName()
	found, err := s.Check(t.Context(), []string{topic})
	if err != nil {
		t.Fatal(err)
	}
	args, ok := strings.CutPrefix(found[0].Remedy, "kafka-topics.sh ")
	if !ok || found[0].Err == nil {
		t.Fatalf("got %+v", found[0])
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := javaTool(ctx, t, broker, "org.apache.kafka.tools.TopicCommand", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", found[0].Remedy, err, out)
	}
	for found[0].Err != nil { // the broker learns of it later than the controller
		if found, err = s.Check(ctx, []string{topic}); err != nil {
			t.Fatal(err)
		}
	}
}

// javaTool returns a command that runs one of the tools that are among the broker's jars.
func javaTool(ctx context.Context, t *testing.T, broker *servers.Kafka, class string, args ...string) *exec.Cmd {
	t.Helper()
	running, err := exec.CommandContext(ctx, "ps", "-ww", "-o", "args=", "-p", strconv.Itoa(broker.Pid())).Output()
	if err != nil {
		t.Fatalf("ask for the broker's class path: %v", err)
	}
	fields := strings.Fields(string(running))
	at := slices.Index(fields, "-cp")
	if at < 0 || at+1 >= len(fields) {
		t.Fatalf("the broker has no class path: %q", fields)
	}
	java := []string{"-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8", "-cp", fields[at+1], class}
	return exec.CommandContext(ctx, fields[0], append(java, args...)...)
}
