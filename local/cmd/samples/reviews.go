package main

import (
	"encoding/json"
	"log"
	"net/http"
	"strconv"
	"time"
)

// reviews tells what reviewers say: v1 without stars, v2 with black ones, v3 with red ones.
type reviews struct {
	ratings      string // address; empty: no stars are shown
	color        string
	limit        time.Duration // of a call to ratings
	pod, cluster string
	client       *http.Client
}

// reviewed is the body of an answer.
type reviewed struct {
	ID      string   `json:"id"`
	Pod     string   `json:"podname"`
	Cluster string   `json:"clustername"` // "null" if it has no name
	Reviews []review `json:"reviews"`
}

type review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *rating `json:"rating,omitempty"`
}

type rating struct {
	Stars *int   `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"` // instead of both
}

func newReviews(env environment) *reviews {
	s := &reviews{color: env.or("STAR_COLOR", "black"), pod: env("HOSTNAME"), cluster: env.or("CLUSTER_NAME", "null"), client: newClient()}
	if env("ENABLE_RATINGS") == "true" {
		s.ratings = env.service("ratings")
	}
	// The bug that the document about faults has its readers find: the page waits 3 s, twice, for who waits 10 s. It is
	// mended in v3.
	s.limit = 2500 * time.Millisecond
	if s.color == "black" {
		s.limit = 10 * time.Second
	}
	return s
}

func (s *reviews) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, status{"Reviews is healthy"})
	})
	mux.HandleFunc("GET /reviews/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		out := []review{
			{Reviewer: "Reviewer1", Text: "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"},
			{Reviewer: "Reviewer2", Text: "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."},
		}
		if s.ratings != "" {
			stars := s.stars(r, id)
			for i := range out {
				out[i].Rating = &rating{Error: "Ratings service is currently unavailable"}
				if n, ok := stars[out[i].Reviewer]; ok {
					out[i].Rating = &rating{Stars: &n, Color: s.color}
				}
			}
		}
		answer(w, http.StatusOK, reviewed{strconv.Itoa(id), s.pod, s.cluster, out})
	})
	return mux
}

// stars returns what ratings says, or nil.
func (s *reviews) stars(r *http.Request, id int) map[string]int {
	_, body, err := get(r.Context(), s.client, s.ratings+strconv.Itoa(id), onward(r.Header), s.limit)
	var says rated
	if err == nil {
		err = json.Unmarshal(body, &says)
	}
	if err != nil {
		log.Printf("reviews: unable to contact ratings: %v", err)
		return nil
	}
	return says.Ratings
}
