package main

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Ratings of users are kept in memory.
const (
	mostRated = 1000    // products
	mostStars = 4 << 10 // bytes that are read of what is said of one
)

// ratings tells how many stars reviewers give, and takes other numbers. Its faulty versions are for documents about resilience.
type ratings struct {
	version string
	began   time.Time
	coin    func() bool // whether this request is one of the faulty half

	mu   sync.Mutex // guards what follows
	rate map[int]map[string]int
}

// rated is the body of an answer.
type rated struct {
	ID      int            `json:"id"`
	Ratings map[string]int `json:"ratings"`
}

func newRatings(env environment) *ratings {
	return &ratings{
		version: env("SERVICE_VERSION"), began: time.Now(), coin: func() bool { return rand.IntN(2) == 0 },
		rate: make(map[int]map[string]int),
	}
}

func (s *ratings) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		if s.version == "v-unhealthy" && s.down(15*time.Minute) {
			answer(w, http.StatusInternalServerError, status{"Ratings is not healthy"})
			return
		}
		answer(w, http.StatusOK, status{"Ratings is healthy"})
	})
	mux.HandleFunc("GET /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, ok := product(w, r)
		if !ok {
			return
		}
		if !s.available(r.Context()) {
			answer(w, http.StatusServiceUnavailable, fault{"Service unavailable"})
			return
		}
		s.mu.Lock()
		stars, ok := s.rate[id] // never changed once it is there
		s.mu.Unlock()
		if !ok {
			stars = map[string]int{"Reviewer1": 5, "Reviewer2": 4}
		}
		answer(w, http.StatusOK, rated{id, stars})
	})
	mux.HandleFunc("POST /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, ok := product(w, r)
		if !ok {
			return
		}
		var stars map[string]int
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostStars))
		if err != nil || json.Unmarshal(body, &stars) != nil {
			answer(w, http.StatusBadRequest, fault{"please provide valid ratings JSON"})
			return
		}
		s.mu.Lock()
		_, known := s.rate[id]
		if ok = known || len(s.rate) < mostRated; ok {
			s.rate[id] = stars
		}
		s.mu.Unlock()
		if !ok {
			answer(w, http.StatusInsufficientStorage, fault{"too many products are rated already"})
			return
		}
		answer(w, http.StatusOK, rated{id, stars})
	})
	return mux
}

func product(w http.ResponseWriter, r *http.Request) (int, bool) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		answer(w, http.StatusBadRequest, fault{"please provide numeric product ID"})
	}
	return id, err == nil
}

// available says whether the version answers this request, after the time that it takes to.
func (s *ratings) available(ctx context.Context) bool {
	switch s.version {
	case "v-faulty":
		return !s.coin()
	case "v-delayed":
		if s.coin() {
			select {
			case <-time.After(7 * time.Second):
			case <-ctx.Done(): // nobody waits for the answer any more
			}
		}
	case "v-unavailable":
		return !s.down(time.Minute)
	case "v-unhealthy":
		return !s.down(15 * time.Minute)
	}
	return true
}

// down says whether this is one of the periods, every other one, in which the version is down.
func (s *ratings) down(period time.Duration) bool { return time.Since(s.began)/period%2 == 1 }
