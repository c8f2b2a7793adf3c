package servers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaClusterID is what random-uuid makes; all our brokers may share it, as they never meet.
const kafkaClusterID = "b3V0Ym94LWNkYy10ZXN0cw"

// KafkaOptions say how to start a broker. The zero value is good for tests.
type KafkaOptions struct {
	// Own asks for a broker that may be killed and paused, even where OUTBOX_TEST_KAFKA names a running one.
	Own bool
	// Proxy puts a proxy in front of a second listener, which advertises the proxy's address: clients that start there
	// stay there. Those that start at Brokers are not affected. It implies Own.
	Proxy bool
	// Join makes it the second broker of this one's cluster, and implies Own. It cannot be run in a container.
	Join *Kafka
	// Settings are lines of server.properties, over ours.
	Settings map[string]string
	// Dir is where its data directory is made; "" is the system's directory for temporary files.
	Dir string
	// Port is that of 127.0.0.1 for clients; 0 is a free one.
	Port int
}

// Kafka is one Apache Kafka broker that is its own controller. Its methods are not safe for concurrent use, except
// those that only tell something.
type Kafka struct {
	instance instance // nil if it is not ours
	addr     string
	quorum   string // the address of its controller
	proxy    *Proxy
	version  string
}

var errNotOurs = errors.New("the broker of OUTBOX_TEST_KAFKA is not ours to stop: ask for an own one")

// StartKafka starts a broker, or connects to the one that OUTBOX_TEST_KAFKA=host:port names. It answers requests when
// this returns.
func StartKafka(ctx context.Context, o KafkaOptions) (*Kafka, error) {
	if addr := os.Getenv("OUTBOX_TEST_KAFKA"); addr != "" && !o.Own && !o.Proxy && o.Join == nil {
		k := &Kafka{addr: addr}
		return k, k.ask(ctx)
	}
	ports := make([]int, 3) // for clients, for the controller, for the proxy
	for i := range ports {
		var err error
		if ports[i], err = FreePort(); err != nil {
			return nil, err
		}
	}
	ports[0] = cmp.Or(o.Port, ports[0])
	k := &Kafka{addr: local(ports[0]), quorum: local(ports[1])}
	if o.Join != nil {
		k.quorum = o.Join.quorum
	}
	if o.Proxy {
		proxy, err := NewProxy(local(ports[2]))
		if err != nil {
			return nil, err
		}
		k.proxy = proxy
	}
	var err error
	if k.instance, err = launchKafka(ctx, o, ports, k.properties(ports, o)); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	if err := k.Start(ctx); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// properties are those of server.properties, without log.dirs.
func (k *Kafka) properties(ports []int, o KafkaOptions) map[string]string {
	listeners := fmt.Sprintf("PLAINTEXT://%s:%d,CONTROLLER://127.0.0.1:%d", bindHost, ports[0], ports[1])
	advertised := "PLAINTEXT://" + k.addr
	if k.proxy != nil {
		listeners += fmt.Sprintf(",PROXIED://%s:%d", bindHost, ports[2])
		advertised += ",PROXIED://" + k.proxy.Addr()
	}
	properties := map[string]string{
		"process.roles":                            "broker,controller",
		"node.id":                                  "1",
		"listeners":                                listeners,
		"advertised.listeners":                     advertised,
		"listener.security.protocol.map":           "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
		"inter.broker.listener.name":               "PLAINTEXT",
		"controller.listener.names":                "CONTROLLER",
		"controller.quorum.bootstrap.servers":      k.quorum,
		"offsets.topic.replication.factor":         "1",
		"offsets.topic.num.partitions":             "1",
		"transaction.state.log.replication.factor": "1",
		"transaction.state.log.min.isr":            "1",
		"transaction.state.log.num.partitions":     "1",
		"group.initial.rebalance.delay.ms":         "0",
		"auto.create.topics.enable":                "false",
		// A broker that was killed is let in again only when its old session has ended, 9 s by default.
		"broker.session.timeout.ms":    "2500",
		"broker.heartbeat.interval.ms": "500",
	}
	if o.Join != nil {
		properties["process.roles"], properties["node.id"] = "broker", "2"
		properties["listeners"] = fmt.Sprintf("PLAINTEXT://%s:%d", bindHost, ports[0])
	}
	maps.Copy(properties, o.Settings)
	return properties
}

func formatProperties(properties map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&b, "%s=%s\n", name, properties[name])
	}
	return b.String()
}

// Start starts it again, after Stop or Kill, at the same ports and with the same data.
func (k *Kafka) Start(ctx context.Context) error {
	if k.instance == nil {
		return errNotOurs
	}
	if err := k.instance.Start(ctx); err != nil {
		return fmt.Errorf("start Apache Kafka: %w", err)
	}
	return ready(ctx, "Apache Kafka", k.instance, k.ask)
}

// ask is answered by a broker that serves requests: its port opens long before. A broker that its controller does not
// let in yet answers as well, but does not list itself.
func (k *Kafka) ask(ctx context.Context) error {
	admin, err := k.admin()
	if err != nil {
		return err
	}
	defer admin.Close()
	brokers, err := admin.ListBrokers(ctx)
	if err != nil {
		return fmt.Errorf("ask Kafka at %s: %w", k.addr, err)
	}
	if len(brokers) == 0 {
		return errors.New("it is not yet part of its cluster")
	}
	versions, err := admin.ApiVersions(ctx)
	if err != nil {
		return fmt.Errorf("ask Kafka at %s for its version: %w", k.addr, err)
	}
	for _, v := range versions {
		k.version = v.VersionGuess()
	}
	return nil
}

func (k *Kafka) admin() (*kadm.Client, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(k.addr), kgo.RetryTimeout(time.Second))
	if err != nil {
		return nil, err
	}
	return kadm.NewClient(client), nil
}

// Brokers are the addresses for clients that are to reach it directly.
func (k *Kafka) Brokers() []string { return []string{k.addr} }

// Proxy is the proxy that was asked for, else nil.
func (k *Kafka) Proxy() *Proxy { return k.proxy }

// Version is what the protocol tells of the broker's version.
func (k *Kafka) Version() string { return k.version }

// Pid is the broker's; 0 when it is not ours or runs in a container.
func (k *Kafka) Pid() int {
	if k.instance == nil {
		return 0
	}
	return k.instance.Pid()
}

// CreateTopic makes a topic with one replica.
func (k *Kafka) CreateTopic(ctx context.Context, name string, partitions int32, configs map[string]string) error {
	admin, err := k.admin()
	if err != nil {
		return err
	}
	defer admin.Close()
	values := make(map[string]*string, len(configs))
	for key, value := range configs {
		values[key] = &value
	}
	if _, err := admin.CreateTopic(ctx, partitions, 1, values, name); err != nil {
		return fmt.Errorf("create topic %q: %w", name, err)
	}
	return nil
}

// Kill ends it as kill -9 does.
func (k *Kafka) Kill() error { return k.end(context.Background(), syscall.SIGKILL) }

// Stop lets it end in good order.
func (k *Kafka) Stop(ctx context.Context) error { return k.end(ctx, syscall.SIGTERM) }

func (k *Kafka) end(ctx context.Context, sig syscall.Signal) error {
	if err := k.signal(sig); err != nil {
		return err
	}
	select {
	case <-k.instance.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("Kafka at %s is still running: %w", k.addr, context.Cause(ctx))
	}
}

// Pause makes it fall silent with its connections open.
func (k *Kafka) Pause() error { return k.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (k *Kafka) Resume() error { return k.signal(syscall.SIGCONT) }

func (k *Kafka) signal(sig syscall.Signal) error {
	if k.instance == nil {
		return errNotOurs
	}
	return k.instance.Signal(sig)
}

// Close ends it at once and removes its data.
func (k *Kafka) Close() error {
	var errs []error
	if k.proxy != nil {
		errs = append(errs, k.proxy.Close())
	}
	if k.instance != nil {
		errs = append(errs, k.instance.Remove())
	}
	return errors.Join(errs...)
}
