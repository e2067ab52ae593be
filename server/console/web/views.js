/**
 * The console's views, in the order of the navigation.
 *
 * name: the first word of the address after /operator/. load: gives the module `views/<name>.js`, which exports
 * `mount(root, context) -> unmount` (see app.js for the context). badge: a number shown on the navigation, from
 * what GET /counts says. admin: for admins only.
 */
export const VIEWS = [
  { name: "inbox", title: "Inbox", icon: "inbox", load: () => import("./views/inbox.js"), badge: ({ waiting }) => waiting },
  { name: "review", title: "Review", icon: "review", load: () => import("./views/review.js") },
  { name: "topics", title: "Topics", icon: "topics", load: () => import("./views/topics.js") },
  { name: "dashboard", title: "Dashboard", icon: "dashboard", load: () => import("./views/dashboard.js") },
  { name: "retraining", title: "Retraining", icon: "retraining", load: () => import("./views/retraining.js") },
  { name: "data", title: "Data", icon: "data", load: () => import("./views/data.js") },
  { name: "settings", title: "Settings", icon: "settings", load: () => import("./views/settings.js") },
];
