package main

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"log"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// productpage shows a book as the other services tell of it, to whoever and to who has said a name.
type productpage struct {
	details, reviews, ratings string // addresses
	flood                     int    // how often reviews is asked for nothing, for the document about rate limits
	client                    *http.Client

	mu    sync.Mutex // guards what follows
	asked map[outcome]int
}

// outcome is what a request to another service came to.
type outcome struct {
	service string
	status  int
}

const (
	patience = 3 * time.Second // for one try of another service
	mostName = 100             // bytes of a user's name, which becomes a header
	session  = "session"       // the cookie with the user's name
)

func newProductpage(env environment) *productpage {
	p := &productpage{
		details: env.service("details"), reviews: env.service("reviews"), ratings: env.service("ratings"),
		client: newClient(), asked: make(map[outcome]int),
	}
	if n, err := strconv.Atoi(env("FLOOD_FACTOR")); err == nil {
		p.flood = n
	}
	return p
}

func (p *productpage) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.index)
	mux.HandleFunc("GET /index.html", p.index)
	mux.HandleFunc("GET /productpage", p.page)
	mux.HandleFunc("POST /login", login)
	mux.HandleFunc("GET /logout", logout)
	mux.HandleFunc("GET /static/style.css", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/css; charset=utf-8")
		fmt.Fprint(w, style)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "Product page is healthy") })
	mux.HandleFunc("GET /metrics", p.metrics)

	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, []title{comedy})
	})
	for path, ask := range map[string]func(*http.Request, string) (int, json.RawMessage){
		"": p.askDetails, "/reviews": p.askReviews, "/ratings": p.askRatings,
	} {
		mux.HandleFunc("GET /api/v1/products/{id}"+path, func(w http.ResponseWriter, r *http.Request) {
			status, body := ask(r, r.PathValue("id"))
			answer(w, status, body)
		})
	}
	return mux
}

// title is the book as this service knows it, which has but one.
type title struct {
	ID          int           `json:"id"`
	Title       string        `json:"title"`
	Description template.HTML `json:"descriptionHtml"`
}

var comedy = title{0, "The Comedy of Errors", `<a href="https://en.wikipedia.org/wiki/The_Comedy_of_Errors">Wikipedia Summary</a>: ` +
	`The Comedy of Errors is one of <b>William Shakespeare's</b> early plays. It is his shortest and one of his most farcical comedies, ` +
	`with a major part of the humour coming from slapstick and mistaken identity, in addition to puns and word play.`}

func (p *productpage) askDetails(r *http.Request, id string) (int, json.RawMessage) {
	return p.ask(r, "details", p.details, id, 1)
}

// askReviews tries twice: with 3 s a try that is less than reviews waits for ratings, as the document about faults wants it.
func (p *productpage) askReviews(r *http.Request, id string) (int, json.RawMessage) {
	return p.ask(r, "reviews", p.reviews, id, 2)
}

func (p *productpage) askRatings(r *http.Request, id string) (int, json.RawMessage) {
	return p.ask(r, "ratings", p.ratings, id, 1)
}

// ask returns the status and the JSON of another service's answer, or what is to be said in its place: 500 if there was none.
func (p *productpage) ask(r *http.Request, service, address, id string, tries int) (status int, body json.RawMessage) {
	header := onward(r.Header)
	header.Del("End-User") // who it is the session says
	if name := user(r); name != "" {
		header.Set("End-User", name)
	}
	for range tries {
		var err error
		if status, body, err = get(r.Context(), p.client, address+url.PathEscape(id), header, patience); err == nil {
			break
		}
		log.Printf("productpage: unable to contact %s: %v", service, err)
		body, _ = json.Marshal(fault{"Sorry, product " + service + " are currently unavailable for this book."})
	}
	status = cmp.Or(status, http.StatusInternalServerError)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[outcome{service, status}]++
	return status, body
}

func (p *productpage) page(w http.ResponseWriter, r *http.Request) {
	view := struct {
		User    string
		Book    title
		Details struct {
			book
			fault
		}
		Reviews struct {
			reviewed
			fault
		}
		DetailsStatus, ReviewsStatus int
	}{User: user(r), Book: comedy}
	id := strconv.Itoa(comedy.ID)
	status, body := p.askDetails(r, id)
	view.DetailsStatus = shown(status, body, &view.Details)
	var flood sync.WaitGroup
	for range p.flood {
		flood.Go(func() { p.askReviews(r, id) })
	}
	flood.Wait()
	status, body = p.askReviews(r, id)
	view.ReviewsStatus = shown(status, body, &view.Reviews)
	render(w, productTemplate, view)
}

// shown decodes what is to be shown, and returns its status: 500 if it is not what the service has to answer.
func shown(status int, body json.RawMessage, out any) int {
	if err := json.Unmarshal(body, out); err != nil {
		log.Printf("productpage: %v", err)
		return http.StatusInternalServerError
	}
	return status
}

func (p *productpage) index(w http.ResponseWriter, _ *http.Request) {
	render(w, indexTemplate, struct{ Details, Reviews, Ratings string }{p.details, p.reviews, p.ratings})
}

func render(w http.ResponseWriter, t *template.Template, data any) {
	var page strings.Builder
	if err := t.Execute(&page, data); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, page.String())
}

// metrics are in Prometheus' text format.
func (p *productpage) metrics(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	asked := maps.Clone(p.asked)
	p.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	fmt.Fprint(w, "# HELP request_result_total Results of requests\n# TYPE request_result_total counter\n")
	for _, o := range slices.SortedFunc(maps.Keys(asked), func(a, b outcome) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.status, b.status))
	}) {
		fmt.Fprintf(w, "request_result_total{destination_app=%q,response_code=\"%d\"} %d\n", o.service, o.status, asked[o])
	}
}

// login believes everybody: there are no passwords, and the cookie is not signed.
func login(w http.ResponseWriter, r *http.Request) {
	name := r.PostFormValue("username")
	if !named(name) {
		http.Error(w, "username must be a name of printable characters, 100 bytes at most", http.StatusBadRequest)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: session, Value: base64.RawURLEncoding.EncodeToString([]byte(name)), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	back(w, r)
}

func logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: session, Path: "/", MaxAge: -1})
	back(w, r)
}

// user returns who has logged in, or nothing. Everybody can send such a cookie.
func user(r *http.Request) string {
	c, err := r.Cookie(session)
	if err != nil {
		return ""
	}
	name, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil || !named(string(name)) {
		return ""
	}
	return string(name)
}

// named says whether a name can be the value of a header.
func named(name string) bool {
	return name != "" && len(name) <= mostName && strings.TrimSpace(name) == name &&
		!strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c > '~' })
}

// back leads to the page that the browser came from, on this host.
func back(w http.ResponseWriter, r *http.Request) {
	to := "/productpage"
	if u, err := url.Parse(r.Referer()); err == nil && strings.HasPrefix(u.Path, "/") && !strings.HasPrefix(u.Path, "//") {
		to = (&url.URL{Path: u.Path, RawQuery: u.RawQuery}).String()
	}
	http.Redirect(w, r, to, http.StatusFound)
}
