package connector

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestClasses(t *testing.T) {
	t.Parallel()
	for want, err := range map[answerClass]error{
		accepted:           nil,
		refused:            errors.New("500"),
		permanentlyRefused: fmt.Errorf("400: %w", sinks.ErrPermanent),
		topicAway:          sinks.After(time.Second, fmt.Errorf("404: %w", sinks.ErrTopicUnavailable)),
		away:               sinks.After(time.Second, fmt.Errorf("503: %w", sinks.ErrUnavailable)),
		notAttempted:       sinks.PutOff(time.Second),
	} {
		if got := classOf(err); got != want {
			t.Errorf("%v is of class %d, want %d", err, got, want)
		}
	}
}

// What the answers to a call say to the breaker.
func TestSurvey(t *testing.T) {
	t.Parallel()
	topicIsAway := fmt.Errorf("404: %w", sinks.ErrTopicUnavailable)
	isAway := fmt.Errorf("dial: %w", sinks.ErrUnavailable)
	for name, tt := range map[string]struct {
		tries int
		errs  []error
		want  verdict
	}{
		"accepted, refused, dead": {errs: []error{nil, errRefused, sinks.ErrPermanent}, want: verdict{accepted: 1, answered: 2, news: true}},
		"a topic that is away":    {errs: []error{topicIsAway}, want: verdict{answered: 1, news: true}},
		"away":                    {errs: []error{isAway, sinks.ErrNotAttempted}, want: verdict{away: 1, news: true}},
		"away, and no news":       {tries: 1, errs: []error{isAway}, want: verdict{away: 1}},
		"nothing was attempted":   {errs: []error{sinks.PutOff(time.Second), sinks.ErrNotAttempted}, want: verdict{}},
	} {
		var messages []*delivery
		for range tt.errs {
			messages = append(messages, &delivery{tries: tt.tries})
		}
		if got := survey(messages, tt.errs); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestFates(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		policy  failurePolicy
		failure failure
		budget  int // how many may die
		want    fate
		attempt bool
		left    int // of the budget
	}{
		"refused":                           {parkFailed, failure{class: refused, retries: 2}, 5, fateParked, true, 5},
		"refused after its last retry":      {parkFailed, failure{class: refused, attempts: 2, retries: 2}, 5, fateDead, true, 4},
		"refused permanently":               {parkFailed, failure{class: permanentlyRefused, retries: 2}, 5, fateDead, true, 4},
		"it may not die":                    {parkFailed, failure{class: permanentlyRefused, retries: 2}, 0, fateParked, false, 0},
		"suspect, with attempts left":       {parkFailed, failure{class: refused, retries: 2}, 0, fateParked, true, 0},
		"away":                              {parkFailed, failure{class: away, attempts: 9, retries: 2}, 5, fateParked, false, 5},
		"its topic is away":                 {parkFailed, failure{class: topicAway, attempts: 9, retries: 2}, 5, fateParked, false, 5},
		"away for too long":                 {parkFailed, failure{class: away, retries: 2, tooOld: true}, 5, fateDead, false, 4},
		"away for too long, may not die":    {parkFailed, failure{class: topicAway, retries: 2, tooOld: true}, 0, fateParked, false, 0},
		"in place: refused":                 {retryInPlace, failure{class: refused, retries: 2}, 5, fateKept, true, 5},
		"in place: its topic is away":       {retryInPlace, failure{class: topicAway, retries: 2}, 5, fateKept, false, 5},
		"in place: it has a row":            {retryInPlace, failure{class: refused, retries: 2, row: true}, 5, fateParked, true, 5},
		"in place: refused permanently":     {retryInPlace, failure{class: permanentlyRefused, retries: 2}, 5, fateDead, true, 4},
		"in place: it may not die":          {retryInPlace, failure{class: permanentlyRefused, retries: 2}, 0, fateParked, false, 0},
		"in place: suspect, attempts left":  {retryInPlace, failure{class: refused, retries: 2}, 0, fateKept, true, 0},
		"tried once: away":                  {discardFailed, failure{class: away, retries: 2}, 5, fateDiscarded, false, 5},
		"tried once: refused permanently":   {discardFailed, failure{class: permanentlyRefused, row: true}, 5, fateDiscarded, true, 5},
		"no retries, and refused for once":  {parkFailed, failure{class: refused}, 5, fateDead, true, 4},
		"no retries, and it is only away":   {parkFailed, failure{class: away}, 5, fateParked, false, 5},
		"too old, refused, attempts left":   {parkFailed, failure{class: refused, retries: 9, tooOld: true}, 5, fateDead, true, 4},
		"the same in place, may not die":    {retryInPlace, failure{class: refused, retries: 9, tooOld: true}, 0, fateParked, false, 0},
		"in place, with a row, may not die": {retryInPlace, failure{class: permanentlyRefused, row: true}, 0, fateParked, false, 0},
	} {
		left := tt.budget
		mayDie := func() bool {
			if left == 0 {
				return false
			}
			left--
			return true
		}
		if got, attempt := tt.policy.fateOf(tt.failure, mayDie); got != tt.want || attempt != tt.attempt || left != tt.left {
			t.Errorf("%s: got fate %d, attempt %t, %d deaths left; want %d, %t, %d", name, got, attempt, left, tt.want, tt.attempt, tt.left)
		}
	}
}
