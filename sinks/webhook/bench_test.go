package webhook

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const receiverProcess = "OUTBOX_WEBHOOK_RECEIVER_PROCESS"

// TestMain can also run as a receiver for benchmarks, in a process of its own, so that its CPU time is not counted for the
// sink. The receiver answers after the duration that a variable names.
func TestMain(m *testing.M) {
	if os.Getenv(receiverProcess) == "" {
		os.Exit(m.Run())
	}
	delay, err := time.ParseDuration(os.Getenv(receiverProcess))
	if err != nil {
		panic(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/cpu" {
			fmt.Fprint(w, cpuTime().Nanoseconds())
			return
		}
		_, _ = io.Copy(io.Discard, r.Body) // a part of it is an error of the sink's
		time.Sleep(delay)
		w.WriteHeader(http.StatusNoContent)
	}))
	fmt.Println(server.URL)
	_, _ = io.Copy(io.Discard, os.Stdin) // until our parent is gone
}

func startReceiverProcess(b *testing.B, delay time.Duration) (url string) {
	b.Helper()
	receiver := exec.Command(os.Args[0])
	receiver.Env = append(os.Environ(), receiverProcess+"="+delay.String())
	receiver.Stderr = os.Stderr
	in, err := receiver.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := receiver.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := receiver.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = receiver.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// BenchmarkDeliver lets four lanes deliver 500 messages of 500 bytes each to a receiver that answers in 1 ms. It shows how
// many messages are delivered in a second, and the CPU time that each takes here and in the receiver. The receiver runs on
// the same processors.
func BenchmarkDeliver(b *testing.B) {
	const lanes, size = 4, 500
	for _, connections := range []int{16, 32} {
		for _, body := range []string{bodyRaw, bodyEnvelope, bodyCloudEvents, bodyCloudEventsStructured} {
			b.Run(fmt.Sprintf("%d connections, %s", connections, body), func(b *testing.B) {
				url := startReceiverProcess(b, time.Millisecond)
				s := newSink(b, Config{URL: url, Body: body, Source: "/outbox", Secrets: []string{standardSecret}, Connections: connections})
				var batches [lanes][]sinks.Message
				for lane := range batches {
					for i := range size {
						m := message(fmt.Sprintf("order-%d-%d", lane, i%97), fmt.Sprintf("0190f5a0-0000-7000-8000-%06d%06d", lane, i))
						random := make([]byte, 240)
						_, _ = rand.Read(random) // never fails
						m.Event.Payload = fmt.Appendf(nil, `{"random":"%s"}`, hex.EncodeToString(random))
						batches[lane] = append(batches[lane], m)
					}
				}
				deliverAll := func() {
					var wg sync.WaitGroup
					for _, batch := range batches {
						wg.Go(func() {
							if errs := s.Deliver(b.Context(), batch); errs != nil {
								b.Error(errs[0])
							}
						})
					}
					wg.Wait()
				}
				deliverAll() // connects
				ours, theirs := cpuTime(), cpuTimeOf(b, url)
				b.ReportAllocs()
				for b.Loop() {
					deliverAll()
				}
				events := float64(b.N * lanes * size)
				b.ReportMetric(events/b.Elapsed().Seconds(), "events/s")
				b.ReportMetric(float64((cpuTime()-ours).Nanoseconds())/events, "cpu-ns/event")
				b.ReportMetric(float64((cpuTimeOf(b, url)-theirs).Nanoseconds())/events, "receiver-cpu-ns/event")
			})
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func cpuTimeOf(b *testing.B, url string) time.Duration {
	b.Helper()
	answer, err := http.Get(url + "/cpu")
	if err != nil {
		b.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(n)
}
