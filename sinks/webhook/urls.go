package webhook

import (
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// urls is what the lanes of a sink share about the URLs that its topics name: which of them are away, and which have answered
// lately. It is used only by a sink whose topics differ. A URL has the name that Sink.path gives.
type urls struct {
	away sinks.Away[string]

	mu       sync.Mutex
	underWay map[string]*underWay
	last     lastAnswer // of all URLs
	other    lastAnswer // of all URLs but that of last
}

// underWay is the requests to one URL that have not ended.
type underWay struct {
	requests int
	answered time.Time // when any of its requests was answered last
}

type lastAnswer struct {
	url string
	at  time.Time
}

// begin notes that a request to a URL begins.
func (u *urls) begin(url string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.underWay == nil {
		u.underWay = map[string]*underWay{}
	}
	if u.underWay[url] == nil {
		u.underWay[url] = &underWay{}
	}
	u.underWay[url].requests++
}

// answered notes that the receiver has answered a request to a URL.
func (u *urls) answered(url string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	u.underWay[url].answered = now
	if u.last.url != url {
		u.other = u.last
	}
	u.last = lastAnswer{url, now}
}

// end notes that a request has ended. It returns whether this URL, and whether any other one, has answered since it began.
func (u *urls) end(url string, began time.Time) (itself, others bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	of := u.underWay[url]
	if of.requests--; of.requests == 0 {
		delete(u.underWay, url)
	}
	another := u.last
	if another.url == url {
		another = u.other
	}
	return of.answered.After(began), another.at.After(began)
}
